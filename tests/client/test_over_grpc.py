"""Over gRPC, calls are shared out over all addresses of a service, and its configuration says what it does unasked."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from service.client import over_grpc
from service.client.over_grpc import connect_grpc
from service.client.transport import Access, Broken, ImageFailed, Refused, Served, TryAgain
from tests.client.fake_service import MESSAGES

CALLS = 40
RESTRICTED = "This protocol is restricted"


class Replica(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Answers every image with the same embedding, and counts."""

    def __init__(self) -> None:
        self.answered = 0
        self.defaults: dict[str, str] = {}

    def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        answer = service_pb2.ModelConfigResponse()
        answer.config.output.add(dims=[4])
        for name, value in {"fingerprint": "0123", **self.defaults}.items():
            answer.config.parameters[name].string_value = value
        return answer

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.answered += 1
        return service_pb2.ModelInferResponse(raw_output_contents=[np.zeros(4, np.float32).tobytes()])


@pytest.fixture
def replicas() -> Iterator[dict[str, Replica]]:
    """By their addresses."""
    with ExitStack() as stack:
        found = {}
        for _ in range(2):
            server, replica = grpc.server(stack.enter_context(ThreadPoolExecutor(4))), Replica()
            service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(replica, server)
            found[f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"] = replica
            server.start()
            stack.callback(_stop, server)
        yield found


@contextmanager
def _forwarded(upstream: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """Another address of `upstream`, for one connection, and what makes it swallow all that comes."""
    host, port = upstream.split(":")
    is_silent = threading.Event()
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        inner = stack.enter_context(socket.create_connection((host, int(port))))

        def pump(source: socket.socket, target: socket.socket) -> None:
            while data := source.recv(2**16):
                if not is_silent.is_set():
                    target.sendall(data)

        def forward() -> None:
            with suppress(OSError), listener.accept()[0] as outer:
                back = threading.Thread(target=pump, args=(inner, outer), daemon=True)
                back.start()
                pump(outer, inner)
                inner.shutdown(socket.SHUT_RDWR)
                back.join()

        thread = threading.Thread(target=forward)
        thread.start()
        yield "{}:{}".format(*listener.getsockname()), is_silent.set
        thread.join()


def _stop(server: Any) -> None:
    server.stop(None).wait()


def test_replicas_behind_one_name_get_equal_shares(replicas: dict[str, Replica]) -> None:
    async def embed() -> None:
        # What a name with two addresses is resolved to.
        async with connect_grpc(f"grpc://ipv4:{','.join(replicas)}", "embed_image", Access(), 60) as transport:
            while not all(replica.answered for replica in replicas.values()):  # until both are connected
                await transport.embed(b"image")
            before = [replica.answered for replica in replicas.values()]
            await asyncio.gather(*(transport.embed(b"image") for _ in range(CALLS)))
            answered = [replica.answered for replica in replicas.values()]
            assert [now - then for now, then in zip(answered, before, strict=True)] == [CALLS / 2] * 2

    asyncio.run(asyncio.wait_for(embed(), 60))


def test_a_service_is_reached_directly_whatever_proxy_there_is(
    replicas: dict[str, Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def embed() -> None:
        async with connect_grpc(f"grpc://{next(iter(replicas))}", "embed_image", Access(), 5) as transport:
            await transport.embed(b"image")

    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    asyncio.run(embed())


def test_a_machine_that_has_gone_without_a_word_is_noticed(
    replicas: dict[str, Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(over_grpc, "_KEEPALIVE", [(name, 500) for name, _ in over_grpc._KEEPALIVE])

    async def embed(address: str, silence: Callable[[], None]) -> None:
        async with connect_grpc(f"grpc://{address}", "embed_image", Access(), 300) as transport:
            await transport.embed(b"image")
            silence()
            with pytest.raises(TryAgain, match="UNAVAILABLE"):
                await transport.embed(b"image")

    with _forwarded(next(iter(replicas))) as (address, silence):
        asyncio.run(asyncio.wait_for(embed(address, silence), 60))


def test_a_try_without_an_answer_ends_in_time(replicas: dict[str, Replica]) -> None:
    async def embed(address: str, silence: Callable[[], None]) -> None:
        async with connect_grpc(f"grpc://{address}", "embed_image", Access(), 0.5) as transport:
            silence()
            with pytest.raises(TryAgain, match="DEADLINE_EXCEEDED"):
                await transport.embed(b"image")

    with _forwarded(next(iter(replicas))) as (address, silence):
        asyncio.run(asyncio.wait_for(embed(address, silence), 60))


@pytest.mark.parametrize(
    ("code", "message", "meaning"),
    [
        ("UNAVAILABLE", "Exceeds maximum queue size", TryAgain("UNAVAILABLE: Exceeds maximum queue size")),
        ("UNAVAILABLE", f"{RESTRICTED}, expecting", Refused(f"UNAVAILABLE: {RESTRICTED}, expecting")),
        ("NOT_FOUND", "Request for unknown model", TryAgain("NOT_FOUND: Request for unknown model")),
        ("CANCELLED", "", TryAgain("CANCELLED: ")),
        ("RESOURCE_EXHAUSTED", "rate limited", TryAgain("RESOURCE_EXHAUSTED: rate limited")),
        ("DEADLINE_EXCEEDED", "late", TryAgain("DEADLINE_EXCEEDED: late")),
        ("UNKNOWN", "Stream removed", Broken("Stream removed")),
        ("INTERNAL", "internal_error: it failed", Broken("internal_error: it failed")),
        ("UNAUTHENTICATED", "who is there", Refused("UNAUTHENTICATED: who is there")),
        ("UNIMPLEMENTED", "", Refused("UNIMPLEMENTED: ")),
        ("INVALID_ARGUMENT", "corrupt_image: it is damaged", ImageFailed("corrupt_image: it is damaged")),
        ("INVALID_ARGUMENT", MESSAGES["400-of-a-neighbour"], TryAgain(MESSAGES["400-of-a-neighbour"])),
        ("INVALID_ARGUMENT", "caf\udce9 is closed", ImageFailed("grpc_invalid_argument: caf\\udce9 is closed")),
        ("RESOURCE_EXHAUSTED", "too\nlarge", ImageFailed("grpc_resource_exhausted: too large")),
        (
            "RESOURCE_EXHAUSTED",
            "SERVER: Received message larger than max (2 vs. 1)",
            ImageFailed("grpc_resource_exhausted: SERVER: Received message larger than max (2 vs. 1)"),
        ),
    ],
)
def test_what_a_status_means_for_the_image_and_the_run(code: str, message: str, meaning: Exception) -> None:
    assert repr(over_grpc._meaning(grpc.StatusCode[code], message)) == repr(meaning)


@pytest.mark.parametrize("doors", [("ca",), ("certificate", "key")])
@pytest.mark.parametrize("content", ["", "junk"])
def test_grpc_is_given_no_file_that_it_would_take_for_none_or_end_the_process_over(
    tmp_path: Path, doors: tuple[str, ...], content: str
) -> None:
    file: Any = tmp_path / "file.pem"
    file.write_text(content)
    with pytest.raises(OSError, match=r"certificate|PEM"):
        over_grpc._tls(Access(**dict.fromkeys(doors, file)))


def test_what_the_service_does_unasked_is_known_before_the_first_image(replicas: dict[str, Replica]) -> None:
    async def served(**defaults: str) -> Served:
        (address, replica), *_ = replicas.items()
        replica.defaults = defaults
        async with connect_grpc(f"grpc://{address}", "embed_image", Access(), 60) as transport:
            return await transport.served()

    assert asyncio.run(served()) == Served("0123", 4, normalize=False)
    assert asyncio.run(served(default_normalize="true")) == Served("0123", 4, normalize=True)
    with pytest.raises(Refused, match="--default-base64-encoded true"):
        asyncio.run(served(default_base64_encoded="true"))
