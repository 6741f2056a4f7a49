"""The service over gRPC: one connection to each of its addresses, one image a call.

Comes in: encoded images. Goes out: embeddings, or the exceptions of `transport`. It must not know of retries.
"""

import contextlib
import struct
from collections.abc import AsyncIterator
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
from grpc import StatusCode
from tritonclient.grpc import service_pb2, service_pb2_grpc

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

# NOT_FOUND is a replica that is being stopped or started.
_TRY_AGAIN = {StatusCode.UNAVAILABLE, StatusCode.NOT_FOUND, StatusCode.DEADLINE_EXCEEDED, StatusCode.CANCELLED}
_BROKEN = {StatusCode.INTERNAL, StatusCode.UNKNOWN}
_REFUSED = {StatusCode.UNAUTHENTICATED, StatusCode.PERMISSION_DENIED, StatusCode.UNIMPLEMENTED}
# A proxy's 429, unless the message says that it is too large itself.
_LIMITED, _TOO_LARGE = StatusCode.RESOURCE_EXHAUSTED, "large"
# How Triton begins to say that the token is missing or wrong; its status is that of overload.
_NO_TOKEN = "This protocol is restricted"
_UNLIMITED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
# By itself gRPC waits for up to two minutes between attempts to connect again.
_RECONNECT = [("grpc.initial_reconnect_backoff_ms", 500), ("grpc.max_reconnect_backoff_ms", 5000)]
# By itself gRPC notices only after a quarter of an hour that a machine has gone without a word.
_KEEPALIVE = [("grpc.keepalive_time_ms", 60_000), ("grpc.http2.ping_timeout_ms", 20_000)]
# As over HTTP: the address is the service's own, whatever proxy the environment has for the web.
_DIRECT = [("grpc.enable_http_proxy", 0)]
# Calls take turns over all addresses that a name has, such as those of a headless Service's pods.
_BALANCED = [("grpc.lb_policy_name", "round_robin")]


@contextlib.asynccontextmanager
async def connect_grpc(url: str, model: str, access: Access, request_seconds: float) -> AsyncIterator["GrpcTransport"]:
    """A connection to `grpc://host:port`, or in TLS to `grpcs://host:port`."""
    scheme, _, target = url.partition("://")
    options = [*_UNLIMITED, *_RECONNECT, *_KEEPALIVE, *_DIRECT, *_BALANCED]
    if scheme == "grpcs":
        channel = grpc.aio.secure_channel(target, _tls(access), options=options)
    else:
        channel = grpc.aio.insecure_channel(target, options=options)
    metadata = [("triton-grpc-protocol-authorization", f"Bearer {access.token}")] if access.token else []
    async with channel:
        yield GrpcTransport(channel, model, metadata, request_seconds)


def _tls(access: Access) -> Any:
    if access.certificate and not access.key:  # gRPC would end the process
        raise Refused("over gRPC a certificate needs its key in a file of its own; add --key-file")
    tls_context(access)  # gRPC would take an empty file of authorities for none, and end the process over an empty key
    ca, key, chain = (path.read_bytes() if path else None for path in (access.ca, access.key, access.certificate))
    return grpc.ssl_channel_credentials(ca, key, chain)


class GrpcTransport:
    """`transport.Transport` over gRPC; `metadata` goes with every call."""

    def __init__(self, channel: Any, model: str, metadata: list[tuple[str, str]], request_seconds: float) -> None:
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        self._model = model
        self._metadata = metadata
        self._request_seconds = request_seconds

    async def served(self) -> Served:
        """What the model's configuration says."""
        request = service_pb2.ModelConfigRequest(name=self._model)
        answer = await self._call(self._stub.ModelConfig, request, SERVED_SECONDS)
        dimensions = [dimension for output in answer.config.output for dimension in output.dims]
        parameters = {name: value.string_value for name, value in answer.config.parameters.items()}
        return read_served(parameters, dimensions)

    async def embed(self, image: bytes) -> Embedding:
        """A BYTES element is four bytes of length, then the image."""
        request = service_pb2.ModelInferRequest(model_name=self._model)
        request.inputs.add(name="INPUT_IMAGE", datatype="BYTES", shape=[1, 1])
        request.raw_input_contents.append(struct.pack("<I", len(image)) + image)
        answer = await self._call(self._stub.ModelInfer, request, self._request_seconds)
        return np.frombuffer(b"".join(answer.raw_output_contents), np.float32)

    async def _call(self, method: Any, request: Any, seconds: float) -> Any:
        try:
            return await method(request, timeout=seconds, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise _meaning(error.code(), error.details() or "") from error


def _meaning(code: StatusCode, message: str) -> Exception:
    if code in _REFUSED or message.startswith(_NO_TOKEN):
        return Refused(f"{code.name}: {message}")
    if code in _TRY_AGAIN or (code is _LIMITED and _TOO_LARGE not in message):
        return TryAgain(f"{code.name}: {message}")
    if code in _BROKEN:
        return Broken(message)
    return refusal(f"grpc_{code.name.lower()}", message)
