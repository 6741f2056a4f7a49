"""It starts every time, ends without dropping anything, and says clearly why it cannot start."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from tests.integration.clients import RAW_HEADERS, base64_text, embed_triton_grpc, post_json, post_raw, triton_input
from tests.integration.load import load
from tests.integration.reference import CHECKPOINT, photographs
from tests.integration.service_process import STOP_SECONDS, ServiceProcess, service, wait_for
from tests.ports import unused_port

AS_IT_SHOULD = "answered and ended with 0"
# Three for each of two cores: they keep the machine busy themselves, and for no longer than they need.
STARTS = 6


def _fill_the_disk(running: ServiceProcess) -> None:
    running.family()[0].rlimit(psutil.RLIMIT_FSIZE, (0, 0))


def _clear_the_files(running: ServiceProcess) -> None:
    """As what clears a TMPDIR of files that are some days old."""
    for folder in running.temporary.iterdir():
        shutil.rmtree(folder)


@pytest.mark.parametrize(("number", "befall"), [(signal.SIGTERM, _fill_the_disk), (signal.SIGINT, _clear_the_files)])
def test_a_signal_under_load_drops_nothing_gives_a_grace_and_leaves_nothing(
    tmp_path: Path, number: signal.Signals, befall: Callable[[ServiceProcess], None]
) -> None:
    with service(tmp_path, "--shutdown-grace-s", "5") as running, load(running, clients=16) as answers:
        wait_for(lambda: len(answers) > 100)
        family = running.family()
        befall(running)
        signalled_at = time.monotonic()
        # A terminal's Ctrl-C reaches the whole process group.
        os.killpg(running.process.pid, number)
        not_ready_at: float | None = None

        def is_gone() -> bool:
            nonlocal not_ready_at
            try:
                ready = requests.get(f"{running.url}/v2/health/ready", timeout=30).status_code == 200
            except requests.ConnectionError:
                return True
            assert not (ready and not_ready_at), "it looked ready again while it ended"
            not_ready_at = not_ready_at or (None if ready else time.monotonic())
            return False

        wait_for(is_gone)
        assert not_ready_at is not None
        assert running.process.wait(STOP_SECONDS) == 0, running.output()
        assert os.listdir(running.temporary) == []
    # In the grace, too, however long a client's thread waits for a core between its clock and its request.
    assert {sent.outcome for sent in answers if sent.at < max(signalled_at, not_ready_at + 2)} == {"right"}
    assert max(sent.at for sent in answers if sent.outcome == "right") > not_ready_at + 2
    # 404 is Triton's word for a model that takes no more requests; a broken connection is the end itself.
    assert {outcome for _, outcome in answers} <= {"right", "404", "no connection"}
    assert not psutil.wait_procs(family, timeout=5)[1] and not running.shared_memory()


def test_with_grpc_alone_it_embeds_and_a_batch_that_triton_has_refused_does_not_hold_up_the_end(tmp_path: Path) -> None:
    """Triton does not end the stubs of a model after that, however long one waits."""
    module = "tests.integration.without_compiler"
    running = ServiceProcess(tmp_path, "--http-port", "0", "--metrics-port", "0", module=module)
    try:
        wait_for(lambda: "ready: embed_image" in running.output() or running.process.poll() is not None)
        assert embed_triton_grpc(running, photographs()).shape[0] == 4
        assert _infer_wherever_it_listens(running) == {403}
        outcomes = _send_lies_among_images(running.grpc_port)
        refused = "incomplete string data for inference input 'INPUT_IMAGE'"  # by which our client knows a neighbour's
        assert set(outcomes) <= {"embedded", refused}
        assert outcomes[refused] > 20
        assert running.stop() == 0, running.output()
        assert not running.shared_memory()
    finally:
        running.kill()


def _infer_wherever_it_listens(running: ServiceProcess) -> set[int]:
    """The statuses of answers on all its ports but that of gRPC: HTTP is off, but for the service itself."""
    connections = [connection for process in running.family() for connection in process.net_connections("tcp")]
    ports = {each.laddr.port for each in connections if each.status == psutil.CONN_LISTEN} - {running.grpc_port}
    urls = [f"http://127.0.0.1:{port}/v2/models/embed_image/infer" for port in ports]
    return {requests.post(url, data=photographs()[0], headers=RAW_HEADERS, timeout=60).status_code for url in urls}


def _send_lies_among_images(port: int) -> Counter[str]:
    """Every third request's length is a lie; how they all ended, up to the first comma."""
    image = photographs()[0]

    def send(number: int) -> str:
        infer_input = triton_input(tritonclient.grpc, [image])
        if number % 3 == 0:
            infer_input._raw_content = b"\xff\xff\xff\xff" + image
        try:
            client.infer("embed_image", [infer_input])
        except InferenceServerException as error:
            return str(error.message())
        return "embedded"

    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{port}") as client, ThreadPoolExecutor(32) as threads:
        return Counter(outcome.partition(",")[0] for outcome in threads.map(send, range(60)))


@pytest.fixture
def hangups() -> Iterator[None]:
    """Have SIGHUP reach what is started meanwhile, also where the tests themselves run below nohup."""
    before = signal.signal(signal.SIGHUP, lambda *_: None)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hangups")
def test_the_terminals_end_drains_it_too_and_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with service(tmp_path, "--shutdown-grace-s", "600") as running, load(running, clients=4) as answers:
        wait_for(lambda: len(answers) > 10)
        family = running.family()
        running.process.send_signal(signal.SIGHUP)
        wait_for(lambda: not running.is_ready())
        running.process.send_signal(signal.SIGHUP)  # which both the shell and the kernel send
        answered = len(answers)
        wait_for(lambda: len(answers) > answered + 10)
        assert {outcome for _, outcome in answers} == {"right"}
        assert running.stop(signal.SIGINT) == 1
        assert "error: stopped at once by a second signal" in running.output()
        assert os.listdir(running.temporary) == []
    assert not psutil.wait_procs(family, timeout=5)[1] and not running.shared_memory()


def test_a_signal_while_it_starts_leaves_nothing(tmp_path: Path) -> None:
    starting = ServiceProcess(tmp_path)
    try:
        wait_for(lambda: any("tritonserver" in each.name() for each in starting.family()))
        family = starting.family()
        assert starting.stop() == 0, starting.output()
        assert not psutil.wait_procs(family, timeout=5)[1]
        assert os.listdir(starting.temporary) == [] and not starting.shared_memory()
    finally:
        starting.kill()


def test_the_next_start_removes_what_one_that_was_killed_has_left(tmp_path: Path) -> None:
    """As in a pod: where memory runs out all processes of a container die at once, and its volumes stay."""
    killed = ServiceProcess(tmp_path)
    try:
        family = killed.wait_until_ready().family()
        assert killed.shared_memory()
        for number in (signal.SIGSTOP, signal.SIGKILL):  # so that nobody sees another one die
            for each in family:
                each.send_signal(number)
        killed.process.wait()
        left = set(os.listdir(killed.temporary))
        with service(tmp_path, environment={"TMPDIR": str(killed.temporary)}):
            assert left and not left & set(os.listdir(killed.temporary)) and not killed.shared_memory()
    finally:
        killed.kill()


KILLED_TESTS = """
import pathlib, sys, time
from tests.integration.service_process import ServiceProcess

print(ServiceProcess(pathlib.Path(sys.argv[1])).process.pid, flush=True)
time.sleep(600)
"""


def test_a_service_of_tests_that_are_killed_ends_with_them(tmp_path: Path) -> None:
    command, environment = [sys.executable, "-c", KILLED_TESTS, str(tmp_path)], {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as run:
        assert run.stdout is not None
        left = psutil.Process(int(run.stdout.readline()))
        run.kill()
    assert not psutil.wait_procs([left], timeout=60)[1]


@pytest.mark.timeout(1200)
def test_it_becomes_ready_every_time_on_a_busy_machine(tmp_path: Path) -> None:
    with ThreadPoolExecutor(STARTS) as threads:
        outcomes = list(threads.map(_start_embed_stop, [tmp_path] * STARTS))
    assert outcomes == [AS_IT_SHOULD] * STARTS


def test_it_starts_whatever_its_checkpoint_and_model_are_called_without_a_path_and_reads_base64_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, photograph = tmp_path / "modèle 模型", photographs()[0]
    shutil.copytree(CHECKPOINT, checkpoint)
    monkeypatch.delenv("PATH")
    settings = ("--checkpoint", str(checkpoint), "--model-alias", "drawings", "--default-base64-encoded", "true")
    with service(tmp_path, *settings) as running:
        assert post_raw(running, base64_text(photograph).encode()).status_code == 200
        assert post_json(running, [base64_text(photograph)], {"embed_model": "drawings"}).status_code == 200
        assert post_raw(running, photograph).json()["error"].startswith("invalid_base64: ")
        told = [_parameters(running, model) for model in ("embed_image", "drawings")]
        assert told[0] == told[1] and told[0]["checkpoint"] == r"mod\xe8le \u6a21\u578b"
        assert (told[0]["default_base64_encoded"], told[0]["default_normalize"]) == ("true", "false")
        no_request_of_its_own = 'nv_inference_count{model="drawings",version="1"} 0\n'
        wait_for(lambda: no_request_of_its_own not in running.metrics())


def _parameters(running: ServiceProcess, model: str) -> dict[str, str]:
    """What the model's configuration tells clients."""
    parameters = requests.get(f"{running.url}/v2/models/{model}/config", timeout=10).json()["parameters"]
    return {name: value["string_value"] for name, value in parameters.items()}


def test_a_taken_port_is_one_clear_line(running: ServiceProcess) -> None:
    result = _run("--http-port", str(running.http_port), "--grpc-port", "0", "--metrics-port", "0")
    assert (result.returncode, result.stdout) == (1, "")
    address = f"127.0.0.1:{running.http_port}"
    assert (
        result.stderr == f"error: cannot listen on {address} (Address already in use); change --host or --http-port\n"
    )
    assert post_raw(running, photographs()[0]).status_code == 200


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["--max-batch", "3"], 2, "unrecognized arguments: --max-batch 3"),
        (["--max-batch-size", "0"], 2, "max_batch_size: Input should be greater than or equal to 1, not '0'"),
        (["--config", "nowhere.toml"], 2, "the settings file nowhere.toml is not there"),
        (["--checkpoint", "./nowhere"], 1, "checkpoint './nowhere' is no folder"),
        (["--checkpoint", "perf/architectures/base-patch16-224"], 1, "--random-weights true"),
        (["--device", "cuda:77"], 1, "device cuda:77 is not there"),
    ],
)
def test_what_keeps_it_from_starting_is_one_clear_line(arguments: list[str], exit_code: int, message: str) -> None:
    result = _run("--http-port", "0", "--metrics-port", "0", "--grpc-port", str(unused_port()), *arguments)
    assert result.returncode == exit_code
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0], result.stderr
    assert "Traceback" not in result.stderr


def test_what_nobody_has_foreseen_is_one_clear_line_too() -> None:
    """As on a full disk: no file may be of more than 100 KB."""
    off = ("--http-port", "0", "--metrics-port", "0", "--grpc-port", str(unused_port()), "--max-batch-size", "1")
    result = _run(*off, program=("bash", "-c", 'ulimit -f 100; exec "$@"', "bash", sys.executable))
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("error: "))
    assert result.returncode == 1 and "File too large" in line


def _run(*arguments: str, program: Sequence[str] = (sys.executable,)) -> "subprocess.CompletedProcess[str]":
    command = [*program, "-m", "service", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _start_embed_stop(folder: Path) -> str:
    with service(folder) as running:
        status = post_raw(running, photographs()[0]).status_code
        outcome = f"{'answered' if status == 200 else status} and ended with {running.stop()}"
        return outcome if outcome == AS_IT_SHOULD else f"{outcome}:\n{running.output()}"
