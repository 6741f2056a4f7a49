"""Whatever part of the service dies, hangs or fails under load: it does not look ready for long, and ends itself.

Each client knows what became of each of its images: none is awaited for ever, and no answer is wrong but an encoder's
own, until it is found out.
"""

import re
import signal
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.integration.load import Sent, load
from tests.integration.service_process import ServiceProcess, service, wait_for

# Hurts a service; the file is what `sabotaged` reads.
Hurt = Callable[[ServiceProcess, Path], object]

NOT_READY_SECONDS = 10
END_SECONDS = 20
# For as long it could still be at work, on a machine as busy as this one was when the encoder warmed up.
HANGING_ENCODER_SECONDS = 90
AT_A_TIME = 3


@dataclass(frozen=True)
class Fault:
    """How a service is hurt; what it says of it (a pattern), how it ends, and what its clients may see.

    Always they may see answers, 500 and an end of the connection; `also_seen` is what else.
    """

    hurt: Hurt
    line: str
    exit_code: int = 1
    seconds: int = END_SECONDS
    also_seen: str = ""


@dataclass(frozen=True)
class Result:
    """What came of it; seconds are those until the service did not look ready, and until all of it was gone."""

    not_ready_after: float
    gone_after: float
    exit_code: int
    output: str
    left: list[object]
    account: list[Sent]


def _signal(part: str, number: signal.Signals) -> Hurt:
    def hurt(running: ServiceProcess, file: Path) -> None:
        parts = (each for each in running.family()[1:] if any(part in word for word in each.cmdline()))
        next(parts).send_signal(number)

    return hurt


def _sabotage(how: str) -> Hurt:
    return lambda _, file: file.write_text(how)


def _stop_the_service(running: ServiceProcess, _: Path) -> None:
    """Let it go on when it has been found out by its own server, which ends although nobody reads its log."""
    server = running.family()[1:]
    running.process.send_signal(signal.SIGSTOP)
    wait_for(lambda: not running.is_ready(), NOT_READY_SECONDS)
    assert not psutil.wait_procs(server[1:], timeout=END_SECONDS)[1]
    running.process.send_signal(signal.SIGCONT)


KILL, STOP = signal.SIGKILL, signal.SIGSTOP
FAULTS: Mapping[str, Fault] = {
    # First, as it takes the longest, and others go on beside it.
    # Whoever waits for a lane meanwhile may be turned away, as in any queue.
    "the encoder hangs": Fault(
        _sabotage("hangs"), "a decode or encode", seconds=HANGING_ENCODER_SECONDS, also_seen="503"
    ),
    "tritonserver is killed": Fault(_signal("bin/tritonserver", KILL), "of tritonserver has died"),
    "tritonserver hangs": Fault(_signal("bin/tritonserver", STOP), "tritonserver does not answer|the stub of .* hangs"),
    "a stub is killed": Fault(_signal("embed_image_0_1", KILL), "of tritonserver has died"),
    "a stub hangs": Fault(_signal("embed_image_0_1", STOP), "the stub of embed_image-lane-1 hangs"),
    "siglip's stub is killed": Fault(_signal("siglip_0_0", KILL), "of tritonserver has died"),
    "siglip's stub hangs": Fault(_signal("siglip_0_0", STOP), "the stub of siglip-lane-0 hangs"),
    "the service is killed": Fault(lambda running, _: running.process.kill(), "", -KILL),
    "the service hangs": Fault(_stop_the_service, "of tritonserver has died"),
    "the encoder raises": Fault(_sabotage("raises"), "the encoder on cpu fails batch after batch"),
    "the encoder is out of memory": Fault(_sabotage("is out of memory"), "the encoder on cpu fails batch after batch"),
    "the encoder is wrong": Fault(_sabotage("is wrong"), "the canary came back with", also_seen="wrong"),
    "the encoder computes no numbers": Fault(_sabotage("computes no numbers"), "one canary after another is answered"),
}


def _bring_about(fault: Fault, folder: Path) -> Result:
    file = folder / "sabotage"
    environment = {"SABOTAGE": str(file)}
    with (
        service(folder, "--lanes", "2", module="tests.faults.sabotaged", environment=environment) as running,
        load(running, clients=3) as account,
    ):
        wait_for(lambda: len(account) > 20 and "ready: embed_image" in running.output())
        family = running.family()
        fault.hurt(running, file)
        hurt_at = time.monotonic()
        wait_for(lambda: not running.is_ready())
        not_ready_after = time.monotonic() - hurt_at
        exit_code = running.process.wait(fault.seconds + NOT_READY_SECONDS)
        _, left = psutil.wait_procs(family[1:], timeout=END_SECONDS)
        gone_after = time.monotonic() - hurt_at
        left_over = [*left, *running.shared_memory()]
        return Result(not_ready_after, gone_after, exit_code, running.output(), left_over, account)


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Future[Result]]:
    """All faults that are asked for, a few services at a time: most of a fault's time is spent waiting."""
    tests = (item for item in request.session.items if isinstance(item, pytest.Function) and item.path == request.path)
    names = [str(test.callspec.params["name"]) for test in tests]
    with ThreadPoolExecutor(AT_A_TIME) as threads:
        futures = {name: threads.submit(_bring_about, FAULTS[name], tmp_path_factory.mktemp("fault")) for name in names}
    return futures


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", FAULTS)
def test_a_service_that_cannot_answer_does_not_look_ready_and_ends(
    name: str, results: dict[str, Future[Result]]
) -> None:
    fault, result = FAULTS[name], results[name].result()
    assert (result.exit_code, result.left) == (fault.exit_code, []), result.output
    errors = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert [bool(re.search(fault.line, error)) for error in errors] == [True] * (fault.exit_code == 1), result.output
    assert result.not_ready_after < max(NOT_READY_SECONDS, fault.seconds - NOT_READY_SECONDS)
    assert result.gone_after < fault.seconds
    outcomes = {sent.outcome for sent in result.account}
    assert outcomes <= {"right", "500", "no connection", fault.also_seen}
    assert {"right", "no connection"} <= outcomes
