"""A request that the PIXEL_VALUES model refuses before the encoder, sent to keep that model's statistics moving.

`perf_analyzer --bls-composing=siglip` gives up on a composing model that serves nothing while it measures, and nothing
of what clients send to `embed_image` goes through it here.
"""

import contextlib
import http.client
import json
import secrets

from service.process.local_client import LocalClient

_SECONDS = 1.0


class StatisticsRequest:
    """Sends the request.

    Attributes:
        mark: the `embed_model` that it asks for: a random one, so that no client can send it and have a refusal that
            the log does not tell.
    """

    def __init__(self, client: LocalClient, model: str, image_size: int) -> None:
        """Prepare a request to `model`, which reads squares of `image_size` pixels."""
        self.mark = secrets.token_hex(16)
        shape = [1, 3, image_size, image_size]
        pixel_values = bytes(4 * 3 * image_size**2)
        tensor = {"name": "PIXEL_VALUES", "shape": shape, "datatype": "FP32"}
        described = {**tensor, "parameters": {"binary_data_size": len(pixel_values)}}
        header = json.dumps({"inputs": [described], "parameters": {"embed_model": self.mark}}).encode()
        self._client = client
        self._path = f"/v2/models/{model}/infer"
        self._body = header + pixel_values
        self._headers = {"Inference-Header-Content-Length": str(len(header))}

    def send(self) -> None:
        """Send it; whether it is answered is no matter here."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            self._client.post(self._path, self._body, _SECONDS, self._headers)
