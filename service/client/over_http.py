"""The service over HTTP: the raw form, one image a request.

Comes in: encoded images. Goes out: embeddings, or the exceptions of `transport`. It must not know of retries.
"""

import contextlib
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import numpy as np

from service.client.transport import (
    SERVED_SECONDS,
    Access,
    Broken,
    Embedding,
    Refused,
    Served,
    TryAgain,
    read_served,
    refusal,
    tls_context,
)

_RAW = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": "0"}
_HEADER_LENGTH = "Inference-Header-Content-Length"
# Connections stay with the replica that they were opened to, and would never reach one that joins: so often, on
# average, a request is the last one of its connection.
_REQUESTS_A_CONNECTION = 200
_LAST = {**_RAW, "Connection": "close"}
# The 404 of a replica that is being stopped or started, and a proxy's 408 and 429.
_TRY_AGAIN = {404, 408, 429}
# Above it are the service's 503, a proxy's 502 and 504, and what others have added, such as Cloudflare's 520 to 527.
_NOT_IMPLEMENTED = 501
_REFUSED = {401, 403}
_CONNECT_SECONDS = 10.0
_NO_SERVICE = "what answers there is no service of image embeddings"


@contextlib.asynccontextmanager
async def connect_http(url: str, model: str, access: Access, request_seconds: float) -> AsyncIterator["HttpTransport"]:
    """A pool of connections to `http://host:port` or `https://host:port`, one a request under way."""
    # Compressing a kilobyte of floats costs both sides more than it saves.
    headers = {"Accept-Encoding": "identity"}
    if access.token:
        headers["Authorization"] = f"Bearer {access.token}"
    connector = aiohttp.TCPConnector(limit=0, ssl=tls_context(access) if url.startswith("https:") else True)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
        yield HttpTransport(session, f"{url}/v2/models/{model}", request_seconds)


class HttpTransport:
    """`transport.Transport` over HTTP; `model_url` is the base of the model's endpoints."""

    def __init__(self, session: aiohttp.ClientSession, model_url: str, request_seconds: float) -> None:
        self._session = session
        self._url = model_url
        self._request_seconds = request_seconds

    async def served(self) -> Served:
        """What the model's configuration says."""
        body, _ = await self._ask("GET", "/config", SERVED_SECONDS)
        try:
            config = json.loads(body)
            parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
            return read_served(parameters, config["output"][0]["dims"])
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise Refused(_NO_SERVICE) from error

    async def embed(self, image: bytes) -> Embedding:
        """The answer is a JSON header, and behind it the float32 values."""
        headers = _RAW if random.randrange(_REQUESTS_A_CONNECTION) else _LAST
        body, header_length = await self._ask("POST", "/infer", self._request_seconds, data=image, headers=headers)
        try:
            return np.frombuffer(body[int(header_length) :], np.float32)
        except ValueError as error:  # such as a proxy's page
            raise Refused(_NO_SERVICE) from error

    async def _ask(self, method: str, path: str, seconds: float, **content: Any) -> tuple[bytes, str]:
        """The body of a good answer, and the length of its JSON header, empty where it is not told."""
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=_CONNECT_SECONDS)
        try:
            # Where redirections are followed, a POST comes there as a GET.
            request = self._session.request(method, self._url + path, timeout=timeout, allow_redirects=False, **content)
            async with request as response:
                body = await response.read()
        except TimeoutError as error:
            raise TryAgain("no answer in time") from error
        # Connections that are refused, reset, or closed before or within an answer.
        except (aiohttp.ClientError, OSError) as error:
            raise TryAgain(str(error) or type(error).__name__) from error
        _check(response, body)
        return body, response.headers.get(_HEADER_LENGTH, "")


def _check(response: aiohttp.ClientResponse, body: bytes) -> None:
    status = response.status
    if status == 200:
        return
    if 300 <= status < 400:
        raise Refused(f"HTTP {status}: the way on is {response.headers.get('Location', 'not told')}; change --url")
    try:
        message = str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        message = response.reason or "no reason given"
    if status in _REFUSED:
        raise Refused(f"HTTP {status}: {message}")
    if status in _TRY_AGAIN or status > _NOT_IMPLEMENTED:
        raise TryAgain(f"HTTP {status}: {message}")
    if status == 500:
        raise Broken(message)
    raise refusal(f"http_{status}", message)
