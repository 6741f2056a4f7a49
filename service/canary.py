"""A small image of known embedding, sent through the service the way a client's image is.

Comes in: what the encoder makes of the image, and a client. Goes out: what kind of answer came, or the failure that a
wrong one is; to others, the image's request and what its answer holds. It must not know of the service's parts.
"""

import base64
import http.client
import io
import json
import logging
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from service.errors import ServiceFailure
from service.local_client import LocalClient

logger = logging.getLogger(__name__)

CANARY_PATH = "/v2/models/embed_image/infer"
Embedding = npt.NDArray[np.float32]

Answer = Literal["right", "crowded out", "refused"]

_SECONDS = 8.0
_NEIGHBOURS_LIE = b"incomplete string data for inference input"
# The size of the batch that an image is in changes its last bits: in bfloat16 by a cosine of 0.9999 or so.
_LEAST_COSINE = 0.999


def canary_image() -> bytes:
    """The JPEG of a colour gradient."""
    ramp = Image.linear_gradient("L").resize((64, 64))
    bands = (ramp, ramp.transpose(Image.Transpose.ROTATE_90), ramp.transpose(Image.Transpose.ROTATE_180))
    buffer = io.BytesIO()
    Image.merge("RGB", bands).save(buffer, "JPEG")
    return buffer.getvalue()


def canary_request(mark: str, **parameters: int) -> bytes:
    """The JSON request that embeds the image, whatever the service's defaults are.

    Args:
        mark: makes it a new image to the cache of embeddings; nothing behind a JPEG's end is read.
        parameters: more of them for the request.
    """
    text = base64.b64encode(canary_image() + mark.encode()).decode()
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
    # The queue is full, or Triton has refused the whole batch for the lie of a request beside the canary.
    return status == http.client.SERVICE_UNAVAILABLE or _NEIGHBOURS_LIE in body


def same_direction(one: Embedding, other: Embedding) -> bool:
    """Whether two embeddings (float32 `[D]`) are of one image, but for rounding; never where one is zero or NaN."""
    least = _LEAST_COSINE * np.linalg.norm(one) * np.linalg.norm(other)
    return bool(np.dot(one, other) >= least > 0)


class Canary:
    """Sends the image by HTTP."""

    def __init__(self, known: Embedding, client: LocalClient) -> None:
        """Prepare to send it; `known` is the embedding (float32 `[D]`, not normalised) of `canary_image()`."""
        self._known = known
        self._client = client
        self._sent = 0

    def send(self) -> Answer:
        """Send the image and say what the answer was: its embedding, a refusal, or a refusal for the sake of others.

        Raises:
            ServiceFailure: the answer is another embedding, or none.
            OSError, HTTPException: there was none within 8 seconds.
        """
        self._sent += 1
        status, body = self._client.post(CANARY_PATH, canary_request(str(self._sent)), _SECONDS)
        if status == http.client.OK:
            if same_direction(read_canary(body), self._known):
                return "right"
            raise ServiceFailure("the canary came back with the embedding of something else")
        if is_crowded_out(status, body):
            return "crowded out"
        logger.warning("the canary was answered with %d: %.200s", status, body.decode(errors="replace"))
        return "refused"
