"""A small image of known embedding, sent through the service the way a client's image is.

Comes in: what the encoder makes of the image, and a client. Goes out: what kind of answer came, or the failure that a
wrong one is. It must not know of the service's parts.
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
        status, body = self._client.post("/v2/models/embed_image/infer", self._next_request(), _SECONDS)
        if status == http.client.OK and not same_direction(_read(body), self._known):
            raise ServiceFailure("the canary came back with the embedding of something else")
        if status == http.client.OK:
            return "right"
        # The queue is full, or Triton has refused the whole batch for the lie of a request beside the canary.
        if status == http.client.SERVICE_UNAVAILABLE or _NEIGHBOURS_LIE in body:
            return "crowded out"
        logger.warning("the canary was answered with %d: %.200s", status, body.decode(errors="replace"))
        return "refused"

    def _next_request(self) -> bytes:
        # Nothing behind a JPEG's end is read, but it makes each of them a new image to the cache of embeddings.
        self._sent += 1
        text = base64.b64encode(canary_image() + str(self._sent).encode()).decode()
        tensor = {"name": "INPUT_IMAGE", "shape": [1, 1], "datatype": "BYTES", "data": [text]}
        return json.dumps({"inputs": [tensor], "parameters": {"base64_encoded": True, "normalize": False}}).encode()


def _read(body: bytes) -> Embedding:
    try:
        (output,) = json.loads(body)["outputs"]
        return np.array(output["data"], np.float32)
    except (ValueError, KeyError, TypeError) as error:
        raise ServiceFailure("the canary's answer cannot be read") from error
