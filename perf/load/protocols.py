"""How one image is sent and its answer checked, protocol by protocol.

Comes in: a target and encoded images. Goes out: an exception for each request that was not answered with an embedding.
It must not know of load or time.
"""

import base64
import contextlib
import json
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp
import grpc  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2, service_pb2_grpc

REQUEST_TIMEOUT_SECONDS = 300.0
# The headers of an encoded image as it is, and of `json_body`.
RAW = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": "0"}
JSON = {"Content-Type": "application/json"}
PROTOCOLS = ("kserve-http", "kserve-json", "kserve-grpc", "kserve-grpc-base64", "openai")


class RequestFailed(Exception):
    """The answer is an error, or holds no embedding."""


@dataclass(frozen=True)
class Target:
    """What is put under load.

    Attributes:
        label: its name in the report.
        protocol: one of `PROTOCOLS`.
        url: `http://host:port` for HTTP; `host:port` for gRPC; what stands before `/embeddings` for openai.
        model: the name of the model.
    """

    label: str
    protocol: str
    url: str
    model: str = "embed_image"

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"there is no protocol {self.protocol!r}; known are {', '.join(PROTOCOLS)}")


class Connection(Protocol):
    """An open way to a target. A request is prepared before it counts, so that the load costs little while it runs."""

    def prepare(self, image: bytes) -> Any:
        """The encoded image as a request that can be sent any number of times."""

    async def send(self, request: Any) -> None:
        """Send, and wait for the whole answer.

        Raises:
            Exception: no embedding came back: RequestFailed, or whatever the transport raises.
        """


@contextlib.asynccontextmanager
async def connect(target: Target) -> AsyncIterator[Connection]:
    """An open connection to the target (several sockets where the protocol wants one a request)."""
    if target.protocol.startswith("kserve-grpc"):
        unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        async with grpc.aio.insecure_channel(target.url, options=unlimited) as channel:
            yield _Grpc(channel, target.model, target.protocol == "kserve-grpc-base64")
    else:
        timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_SECONDS)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
            yield _http(session, target)


class _Grpc:
    def __init__(self, channel: Any, model: str, as_base64: bool) -> None:
        self._infer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
        self._model = model
        self._as_base64 = as_base64

    def prepare(self, image: bytes) -> Any:
        if self._as_base64:
            return grpc_request([base64.b64encode(image)], model=self._model, base64_encoded=True)
        return grpc_request([image], model=self._model)

    async def send(self, request: Any) -> None:
        try:
            answer = await self._infer(request, timeout=REQUEST_TIMEOUT_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise RequestFailed(f"{error.code().name}: {error.details()}") from error
        if not (answer.outputs and answer.raw_output_contents):
            raise RequestFailed("the answer holds no output")


@dataclass(frozen=True)
class _Http:
    """One POST a request; an answer is good when it is a 200 and holds `sign`."""

    session: aiohttp.ClientSession
    url: str
    headers: dict[str, str]
    prepare: Callable[[bytes], bytes]
    sign: bytes

    async def send(self, request: bytes) -> None:
        async with self.session.post(self.url, data=request, headers=self.headers) as response:
            answer = await response.read()
        if response.status != 200:
            raise RequestFailed(f"HTTP {response.status}: {answer[:200].decode(errors='replace')}")
        if self.sign not in answer:
            raise RequestFailed(f"the answer holds no {self.sign.decode()}")


def _http(session: aiohttp.ClientSession, target: Target) -> _Http:
    base = target.url.rstrip("/")
    infer = f"{base}/v2/models/{target.model}/infer"
    if target.protocol == "kserve-http":
        return _Http(session, infer, RAW, bytes, b'"outputs"')
    if target.protocol == "kserve-json":
        return _Http(session, infer, JSON, _kserve_json, b'"outputs"')
    return _Http(session, f"{base}/embeddings", JSON, lambda image: _openai(image, target.model), b'"embedding"')


def json_body(rows: Sequence[str], shape: Sequence[int] | None = None, **parameters: Any) -> bytes:
    """A JSON request whose rows are texts."""
    tensor = {"name": "INPUT_IMAGE", "shape": shape or [len(rows), 1], "datatype": "BYTES", "data": list(rows)}
    return json.dumps({"inputs": [tensor], "parameters": parameters}).encode()


def grpc_request(
    rows: Sequence[bytes], contents: bytes | None = None, model: str = "embed_image", **parameters: str | bool
) -> Any:
    """A gRPC request; `contents` in place of the rows' packed bytes."""
    request = service_pb2.ModelInferRequest(model_name=model)
    request.inputs.add(name="INPUT_IMAGE", datatype="BYTES", shape=[len(rows), 1])
    request.raw_input_contents.append(b"".join(map(with_length, rows)) if contents is None else contents)
    for name, value in parameters.items():
        setattr(request.parameters[name], "bool_param" if isinstance(value, bool) else "string_param", value)
    return request


def _kserve_json(image: bytes) -> bytes:
    return json_body([base64.b64encode(image).decode()], base64_encoded=True)


def _openai(image: bytes, model: str) -> bytes:
    """infinity's form of an image; base64 answers are the cheapest it has."""
    uri = f"data:image/jpeg;base64,{base64.b64encode(image).decode()}"
    return json.dumps({"model": model, "input": [uri], "modality": "image", "encoding_format": "base64"}).encode()


def with_length(row: bytes) -> bytes:
    """A BYTES element as the KServe protocol packs it: four bytes of length, then the element."""
    return struct.pack("<I", len(row)) + row
