"""HTTP and gRPC to one service, with whatever it answers: embeddings, or an error as it is.

Comes in: bytes and headers, or a gRPC message, well formed or not. Goes out: status, embeddings and message.
"""

import asyncio
import contextlib
import json
import urllib.parse
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import aiohttp
import grpc  # type: ignore[import-untyped]
import numpy as np
from tritonclient.grpc import service_pb2_grpc

from perf.embeddings import Embeddings
from perf.load.protocols import RAW, Target

_TIMEOUT_SECONDS = 60.0
_STATUS = {"OK": 200, "INVALID_ARGUMENT": 400, "NOT_FOUND": 404, "INTERNAL": 500, "UNAVAILABLE": 503}


class Answer(NamedTuple):
    """What came back: HTTP's status (also for gRPC), float32 embeddings `[N, D]` with 200, else the message."""

    status: int
    embeddings: Embeddings
    message: str = ""


NOTHING = np.empty((0, 0), np.float32)


class Wire:
    """An HTTP session and a gRPC channel to the same service."""

    def __init__(self, session: aiohttp.ClientSession, channel: Any, url: str) -> None:
        self._session = session
        self._infer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
        self._url = url

    async def post(self, body: bytes, headers: dict[str, str]) -> Answer:
        """One HTTP request, its answer in whichever form it came."""
        async with self._session.post(self._url, data=body, headers=headers) as response:
            content = await response.read()
        if response.status != 200:
            return Answer(response.status, NOTHING, content.decode(errors="replace"))
        length = int(response.headers.get("Inference-Header-Content-Length", len(content)))
        (output,) = json.loads(content[:length])["outputs"]
        values = np.frombuffer(content[length:], np.float32) if content[length:] else np.float32(output["data"])
        return Answer(200, values.reshape(output["shape"]))

    async def call(self, request: Any) -> Answer:
        """One gRPC request."""
        try:
            answer = await self._infer(request, timeout=_TIMEOUT_SECONDS)
        except grpc.aio.AioRpcError as error:
            return Answer(_STATUS.get(error.code().name, 0), NOTHING, f"{error.code().name}: {error.details()}")
        values = np.frombuffer(answer.raw_output_contents[0], np.float32)
        return Answer(200, values.reshape(answer.outputs[0].shape))

    async def break_off(self, body: bytes, share: float, reset: bool) -> None:
        """Send `share` of an HTTP request, and end the connection without a look at the answer."""
        url = urllib.parse.urlsplit(self._url)
        head = f"POST {url.path} HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Length: {len(body)}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in RAW.items())
        request = f"{head}\r\n".encode() + body
        _, writer = await asyncio.open_connection(url.hostname, url.port)
        writer.write(request[: int(share * len(request))])
        await writer.drain()
        writer.transport.abort() if reset else writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def connect_both(http: Target, grpc_target: Target) -> AsyncIterator[Wire]:
    """New connections to a service."""
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_SECONDS)
    # A channel of its own each time: by default they share one connection.
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session,
        grpc.aio.insecure_channel(grpc_target.url, options=options) as channel,
    ):
        yield Wire(session, channel, f"{http.url}/v2/models/{http.model}/infer")
