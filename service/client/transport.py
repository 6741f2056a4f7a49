"""What every way to the service has in common: two questions, the kinds of answers, and TLS.

Comes in: nothing. Goes out: the protocol that `over_http` and `over_grpc` keep, and the exceptions that tell apart what
a failed request means for its image and for the run. It must not know how any of it is sent.
"""

import re
import ssl
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Embedding = npt.NDArray[np.float32]

# A service that was set up without a C compiler fails a whole batch where the lengths in one of its requests lie. Those
# that are sent here never do.
_NEIGHBOURS_LIE = " for inference input 'INPUT_IMAGE'"

# A configuration is told without waiting for a batch.
SERVED_SECONDS = 10.0


@dataclass(frozen=True)
class Served:
    """What a service says of its model: its embeddings' fingerprint and dimension D, and whether all get norm 1."""

    fingerprint: str
    dimension: int
    normalize: bool

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in asdict(self).items())


@dataclass(frozen=True)
class Access:
    """What opens the service's doors.

    Attributes:
        token: what inference asks for, or None.
        ca: PEM file of the authorities to trust, or None for the system's over HTTP, and gRPC's own over gRPC.
        certificate, key: PEM files that this client proves itself with, or None.
    """

    token: str | None = None
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


def tls_context(access: Access) -> ssl.SSLContext:
    """The context of a client with this access; raises OSError where a file does not hold what it should."""
    context = ssl.create_default_context(cafile=access.ca)
    if access.certificate:
        context.load_cert_chain(access.certificate, access.key)
    return context


class Transport(Protocol):
    """An open way to one model of a service."""

    async def served(self) -> Served:
        """What is served there.

        Raises:
            TryAgain, Refused, ImageFailed: as `embed`.
        """

    async def embed(self, image: bytes) -> Embedding:
        """One encoded image -> float32 `[D]`, in one request.

        Raises:
            ImageFailed: the image is at fault.
            TryAgain: the same request may succeed later.
            Refused: no request will.
        """


class ImageFailed(Exception):
    """No embedding will come of this image. `str(error)` is one line: `code: what is wrong`."""


class TryAgain(Exception):
    """The service is overloaded, going, coming, or out of reach: the image is not at fault."""


class Broken(TryAgain):
    """The service itself has failed: a part of it may have died, or this image kills it."""


class Refused(Exception):
    """The service will not work for this client: a token is missing or wrong, or it is another kind of service."""


def refusal(code: str, message: str) -> ImageFailed | TryAgain:
    """What it means that a request is said to be at fault."""
    return TryAgain(message) if _NEIGHBOURS_LIE in message else failure(code, message)


def failure(code: str, message: str) -> ImageFailed:
    """The service's own `code: what is wrong` as it is; anything else behind the protocol's code."""
    text = message.encode("utf-8", "backslashreplace").decode()  # a proxy's may be no Unicode, which Arrow refuses
    line = " ".join(text.split())[:500]
    return ImageFailed(line if re.match("[a-z0-9_]+: ", line) else f"{code}: {line}")


def read_served(parameters: Mapping[str, str], dimensions: list[Any]) -> Served:
    """What a model's configuration says, in the types of `Served`.

    Raises:
        Refused: it is not the configuration of a service that embeds images as they are sent here.
    """
    fingerprint = parameters.get("fingerprint")
    if not fingerprint or len(dimensions) != 1:
        raise Refused("the model there tells no fingerprint of its embeddings")
    # The raw form over HTTP has no room for parameters that would say otherwise.
    if parameters.get("default_base64_encoded") == "true":
        raise Refused(
            "the service takes images for base64 text (--default-base64-encoded true); here they are sent raw"
        )
    return Served(fingerprint, int(dimensions[0]), parameters.get("default_normalize") == "true")
