"""A small image of known embedding, sent through the service the way a client's image is.

Comes in: what the encoder makes of the image, a client, and where there are several devices a way to each. Goes out:
what kind of answer came, or the failure that a wrong one is; to others, the image's request and what its answer holds.
It must not know of the service's parts.
"""

import base64
import functools
import http.client
import io
import json
import logging
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from service.errors import Fault, ServiceFailure
from service.process.local_client import LocalClient

logger = logging.getLogger(__name__)

CANARY_PATH = "/v2/models/embed_image/infer"
Embedding = npt.NDArray[np.float32]

# Embeds the image on one device, or says why it cannot.
Embed = Callable[[], Embedding | Fault]

Answer = Literal["right", "crowded out", "refused"]

_SECONDS = 5.0
# What Triton says to all requests of a batch: for the lie of one of them, as it does without `whole_strings.c`, and
# where all of them together do not fit into what is left of /dev/shm.
_OF_A_WHOLE_BATCH = (b"incomplete string data for inference input", b"increase the shared memory pool size")
# The size of the batch that an image is in changes its last bits: in bfloat16 by a cosine of 0.9999 or so.
_LEAST_COSINE = 0.999


@functools.cache
def canary_image() -> bytes:
    """The JPEG of a colour gradient."""
    ramp = Image.linear_gradient("L").resize((64, 64))
    bands = (ramp, ramp.transpose(Image.Transpose.ROTATE_90), ramp.transpose(Image.Transpose.ROTATE_180))
    buffer = io.BytesIO()
    Image.merge("RGB", bands).save(buffer, "JPEG")
    return buffer.getvalue()


def canary_request(**parameters: int) -> bytes:
    """The JSON request that embeds the image, whatever the service's defaults are; with more `parameters`."""
    text = base64.b64encode(canary_image()).decode()
    tensor = {"name": "INPUT_IMAGE", "shape": [1, 1], "datatype": "BYTES", "data": [text]}
    asked = {"base64_encoded": True, "normalize": False, **parameters}
    return json.dumps({"inputs": [tensor], "parameters": asked}).encode()


def read_canary(body: bytes) -> Embedding:
    """The embedding in the answer to a canary's request.

    Raises:
        ServiceFailure: there is none.
    """
    try:
        (output,) = json.loads(body)["outputs"]
        return np.array(output["data"], np.float32)
    except (ValueError, KeyError, TypeError) as error:
        raise ServiceFailure("the canary's answer cannot be read") from error


def is_crowded_out(status: int, body: bytes) -> bool:
    """Whether an answer is a refusal for the sake of others, and says nothing of the service."""
    return status == http.client.SERVICE_UNAVAILABLE or any(reason in body for reason in _OF_A_WHOLE_BATCH)


def same_direction(one: Embedding, other: Embedding) -> bool:
    """Whether two embeddings (float32 `[D]`) are of one image, but for rounding; never where one is zero or NaN."""
    least = _LEAST_COSINE * np.linalg.norm(one) * np.linalg.norm(other)
    return bool(np.dot(one, other) >= least > 0)


class Canary:
    """Sends the image by HTTP, and to each device by itself where that does not tell of all of them."""

    def __init__(self, known: Embedding, client: LocalClient, devices: Sequence[Embed]) -> None:
        """Prepare to send it.

        Args:
            known: the embedding (float32 `[D]`, not normalised) of `canary_image()`.
            devices: what embeds on each of them. Which of several a request gets to is Triton's choice, and may for
                long not be the one that computes wrong numbers; where more arrives than they compute, it gets to none.
        """
        self._known = known
        self._client = client
        self._devices = devices

    def send(self) -> Answer:
        """Send the image and say what the answer was: its embedding, a refusal, or a refusal for the sake of others.

        Raises:
            ServiceFailure: the answer is another embedding, or none.
            OSError, HTTPException: there was none within 5 seconds.
        """
        try:
            answer = self._send_by_http()
        except (OSError, http.client.HTTPException):
            if not self._devices_embed():
                return "refused"
            raise
        # A right answer tells of one device, whichever Triton chose; a canary that was crowded out tells of none.
        tells = answer == "refused" or (answer == "right" and len(self._devices) == 1)
        return answer if tells or self._devices_embed() else "refused"

    def _send_by_http(self) -> Answer:
        status, body = self._client.post(CANARY_PATH, canary_request(), _SECONDS)
        if status == http.client.OK:
            self._compare(read_canary(body))
            return "right"
        if status != http.client.SERVICE_UNAVAILABLE:
            logger.warning("the canary was answered with %d: %.200s", status, body.decode(errors="replace"))
        return "crowded out" if is_crowded_out(status, body) else "refused"

    def _devices_embed(self) -> bool:
        """Whether each of them makes an embedding of the image.

        Raises:
            ServiceFailure: one makes another than it should.
        """
        outcomes = [embed() for embed in self._devices]
        for outcome in outcomes:
            if not isinstance(outcome, Fault):
                self._compare(outcome)
        return not any(isinstance(outcome, Fault) for outcome in outcomes)

    def _compare(self, embedding: Embedding) -> None:
        if not same_direction(embedding, self._known):
            raise ServiceFailure("the canary came back with the embedding of something else")
