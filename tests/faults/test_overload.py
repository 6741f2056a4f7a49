"""More requests than can be worked off: what is not taken is refused at once, what is taken is answered."""

import contextlib
import itertools
import re
import resource
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import requests
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from service.pytriton_compat.tritonserver import find_library
from tests.integration.clients import post_raw, triton_input
from tests.integration.load import load
from tests.integration.probing import probe
from tests.integration.reference import photographs
from tests.integration.service_process import STOP_SECONDS, ServiceProcess, service, wait_for
from tests.limits import open_files

QUEUE = 16
BATCH = 8
USUAL_OPEN_FILES = 1024
IDLE_CLIENTS = 1100
WAITING = 8


@contextlib.contextmanager
def sabotaged_service(folder: Path, batch: int, *limits: str) -> Iterator[tuple[ServiceProcess, Path]]:
    """A service with one lane for batches of so many, and the file that makes its encoder wait.

    It sends a canary at its start, and the next one in hours: nobody else's image is where a test wants its own.
    """
    file, module = folder / "sabotage", "tests.faults.sabotaged"
    arguments = ("--lanes", "1", "--max-batch-size", str(batch), *limits)
    environment = {"SABOTAGE": str(file), "IMAGE_SECONDS": "1000"}
    with service(folder, *arguments, module=module, environment=environment) as running:
        # With the image that it has tried itself out with before it was ready.
        wait_for(lambda: 'embed_images_total{code="ok"} 2.0' in running.metrics())
        yield running, file


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServiceProcess, Path]]:
    """One with little room before its lane, started as most systems do: with few open files, more for the asking."""
    limits = ("--max-queue-size", str(QUEUE), "--queue-timeout-ms", "1000", "--max-image-bytes", "1000000")
    with contextlib.ExitStack() as stack:
        with open_files(USUAL_OPEN_FILES):
            started = stack.enter_context(sabotaged_service(tmp_path_factory.mktemp("narrow"), BATCH, *limits))
        yield started


def test_clients_that_say_nothing_take_nobodys_place(narrow: tuple[ServiceProcess, Path]) -> None:
    running, _ = narrow
    _, allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed < 4 * USUAL_OPEN_FILES:
        pytest.skip(f"no process may have more than {allowed} open files here")
    with contextlib.ExitStack() as stack:
        stack.enter_context(open_files(allowed))
        for port in (running.http_port, running.grpc_port):
            for _ in range(IDLE_CLIENTS):
                stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
            assert post_raw(running, photographs()[0]).status_code == 200
        assert "embed_triton_restarts_total 0.0" in running.metrics()


def test_a_request_for_which_shared_memory_may_not_grow_is_the_end_of_nothing_else(
    narrow: tuple[ServiceProcess, Path],
) -> None:
    running, _ = narrow
    family, large = running.family(), [triton_input(tritonclient.grpc, [bytes(280 * 2**20)])]  # over HTTP it gets a 413
    with (
        tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{running.grpc_port}") as client,
        pytest.raises(InferenceServerException, match="Failed to increase the shared memory pool size"),
    ):
        client.infer("embed_image", large)
    assert running.family() == family


def test_a_flood_is_refused_at_once_and_what_is_taken_is_answered(narrow: tuple[ServiceProcess, Path]) -> None:
    running, _ = narrow
    with load(running, clients=4 * (QUEUE + BATCH)) as account:
        wait_for(lambda: len(account) > 2000)
    outcomes = Counter(sent.outcome for sent in account)
    assert set(outcomes) == {"right", "503"} and outcomes["right"] > BATCH + QUEUE
    assert post_raw(running, photographs()[0]).status_code == 200


def test_who_waits_for_too_long_is_told_over_http_and_grpc(narrow: tuple[ServiceProcess, Path]) -> None:
    running, file = narrow

    def send_http() -> str:
        response = post_raw(running, photographs()[0])
        return "200" if response.status_code == 200 else f"{response.status_code} {response.json()['error']}"

    def send_grpc() -> str:
        with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{running.grpc_port}") as client:
            try:
                client.infer("embed_image", [triton_input(tritonclient.grpc, [photographs()[0]])])
            except InferenceServerException as error:
                return f"{error.status()} {error.message()}"
        return "200"

    with ThreadPoolExecutor(6) as threads:
        file.write_text("hangs")
        first = threads.submit(send_http)
        wait_for(lambda: _is_busy(running))
        others = [threads.submit(send) for send in (send_http, send_grpc) * 2]
        wait_for(lambda: all(other.done() for other in others))
        assert not first.done()
        file.unlink()
        assert first.result() == "200"
    expired = "Request timeout expired"
    assert {other.result() for other in others} == {f"503 {expired}", f"StatusCode.UNAVAILABLE {expired}"}
    assert send_http() == send_grpc() == "200"


def test_the_probe_tells_busy_from_unable(narrow: tuple[ServiceProcess, Path]) -> None:
    running, _ = narrow

    def is_told_busy() -> bool:
        told = probe("--url", running.url)
        assert told.returncode == 0, told
        return told.stdout.startswith("able, but busy: ")

    with load(running, clients=4 * (QUEUE + BATCH)):
        wait_for(is_told_busy)
    server = running.part("bin/tritonserver")
    server.suspend()
    hangs = probe("--url", running.url, "--timeout-s", "1")
    server.resume()
    assert hangs.returncode == 1 and hangs.stdout.startswith("not able: ")


@pytest.mark.skipif(find_library("preload") is None, reason="setup has found no C compiler")
@pytest.mark.parametrize(
    ("piece", "times"), [(b"1\r\nx\r\n" * 10_000, 40), (b"100000\r\n%s\r\n" % bytes(2**20), 400)], ids=["tiny", "large"]
)
def test_a_request_takes_no_more_memory_than_the_largest_batch(
    narrow: tuple[ServiceProcess, Path], piece: bytes, times: int
) -> None:
    """A chunk of a byte takes 1 KiB, and so many of them, or 2 GiB in all, would end tritonserver."""
    running, _ = narrow
    head = "POST /v2/models/embed_image/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", running.http_port), timeout=60) as connection:
        with contextlib.suppress(ConnectionError):
            for part in (head.encode(), *itertools.repeat(piece, times), b"0\r\n\r\n"):
                connection.sendall(part)
        answer = connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 413 ") and b'{"error":"too_many_bytes: ' in answer
    assert "embed_triton_restarts_total 0.0" in running.metrics()


def test_several_requests_of_a_connection_may_take_more(narrow: tuple[ServiceProcess, Path]) -> None:
    running, _ = narrow
    with requests.Session() as session:
        for _ in range(10):
            assert session.post(f"{running.url}/v2/models/nope/infer", data=bytes(2**25), timeout=60).status_code == 404
    assert post_raw(running, photographs()[0]).status_code == 200


class Loss(NamedTuple):
    """What a part is sent in a drain, how many seconds after its begin, and what the service says of it (a pattern)."""

    part: str
    number: signal.Signals
    seconds: float
    said: str


LOSSES = {
    "tritonserver is killed": Loss("bin/tritonserver", signal.SIGKILL, 0, "tritonserver has died"),
    "tritonserver hangs": Loss("bin/tritonserver", signal.SIGSTOP, 0, "tritonserver or a stub hangs"),
    # So late that it is not known to hang when the drain looks at what is left for the first time, after 8 seconds.
    # But the kernel ends it before, with a C compiler at setup, as it has a batch in its hands.
    "a stub hangs": Loss("embed_image_0_0", signal.SIGSTOP, 4, "(tritonserver or a stub hangs|a stub has died)"),
    "a stub is killed": Loss("embed_image_0_0", signal.SIGKILL, 0, "a stub has died"),
}


class End(NamedTuple):
    """The exit code of a service, what it has printed, the statuses that its clients got, and how many got none."""

    exit_code: int
    output: str
    statuses: set[int]
    lost: int


def _drain(folder: Path, waiting: int, said: str, act: Callable[[ServiceProcess], object]) -> End:
    """With one image in the works, that ends after `act`, and some in the queue; `act` is for when this is said."""
    with sabotaged_service(folder, 1) as (running, file), ThreadPoolExecutor(waiting + 1) as threads:
        file.write_text("hangs")
        answers = [threads.submit(post_raw, running, photographs()[0]) for _ in range(waiting + 1)]
        wait_for(lambda: _is_busy(running) and _waiting(running.metrics()) == waiting)
        running.process.send_signal(signal.SIGTERM)
        wait_for(lambda: said in running.output())
        act(running)
        file.unlink()
        exit_code = running.process.wait(STOP_SECONDS)
        lost = [answer for answer in answers if isinstance(answer.exception(), requests.ConnectionError)]
        statuses = {answer.result().status_code for answer in answers if answer not in lost}
        return End(exit_code, running.output(), statuses, len(lost))


def _lose(loss: Loss, running: ServiceProcess) -> None:
    begun = time.monotonic()
    wait_for(lambda: time.monotonic() >= begun + loss.seconds)
    running.part(loss.part).send_signal(loss.number)


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Future[End]]:
    """Two at a time: they mostly wait, but a start keeps all cores busy, and tests beside this one count seconds."""
    # What is left is told as the drain begins, and again as it goes on.
    drains: dict[str, tuple[int, str, Callable[[ServiceProcess], object]]] = {
        "nothing is lost": (WAITING, "still draining", lambda _: None),
        **{name: (1, "draining: 1 requests in the works", partial(_lose, loss)) for name, loss in LOSSES.items()},
    }
    with ThreadPoolExecutor(2) as threads:
        return {name: threads.submit(_drain, tmp_path_factory.mktemp("drain"), *how) for name, how in drains.items()}


@pytest.mark.timeout(600)
def test_a_drain_tells_what_is_left(ends: dict[str, Future[End]]) -> None:
    end = ends["nothing is lost"].result()
    assert (end.exit_code, end.statuses, end.lost) == (0, {200}, 0), end.output
    told = re.findall(r"INFO .*draining: 1 requests in the works, (\d+) waiting for a batch", end.output)
    assert len(told) >= 2 and {int(waiting) for waiting in told} == {WAITING}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", LOSSES)
def test_a_drain_that_a_part_does_not_survive_is_no_success(name: str, ends: dict[str, Future[End]]) -> None:
    end = ends[name].result()
    assert end.exit_code == 1
    assert re.search(f"error: {LOSSES[name].said} before everything accepted was answered", end.output)
    # Nobody is told a success; whose stub is killed before tritonserver is gets a 500.
    assert end.statuses <= {500}


def _waiting(metrics: str) -> int:
    (waiting,) = re.findall(
        r'^nv_inference_pending_request_count\{model="embed_image",.* (\d+)$', metrics, re.MULTILINE
    )
    return int(waiting)


def _is_busy(running: ServiceProcess) -> bool:
    return "embed_busy_lanes 1.0" in running.metrics()
