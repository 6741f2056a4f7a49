"""Whatever part of the service dies, hangs or fails under load: it does not look ready for long, and heals or ends.

Each client knows what became of each of its images: none is awaited for ever, and no answer is wrong but an encoder's
own, until it is found out.
"""

import contextlib
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
import requests

from tests.integration.clients import post_raw
from tests.integration.load import Sent, load
from tests.integration.reference import photographs
from tests.integration.service_process import ServiceProcess, service, wait_for

# Hurts a service; the file is what `sabotaged` reads.
Hurt = Callable[[ServiceProcess, Path], object]

NOT_READY_SECONDS = 10
END_SECONDS = 20
# For 20 seconds and five times what full batches in both lanes take, it could still be at work.
HANGING_ENCODER_SECONDS = 60
AT_A_TIME = 3
FREEZES = 3
FREEZE_SECONDS = 3.5
SHORT_FREEZE_SECONDS = 1.5
# After a freeze, until tritonserver has found its stubs dead and another one is there, if it does.
RESTART_SECONDS = 5
# Of each client: without one they keep all cores busy.
PAUSE_SECONDS = 0.05
MOST_RESTARTS = 5
LEAST_SENT = 50


@dataclass(frozen=True)
class Fault:
    """How a service is hurt; what it says of it (a pattern), how it ends, and what its clients may see.

    With the exit code 0 it goes on, and ends when it is told to; `restarts` are those of tritonserver before. Clients
    may always see answers, 500 and an end of the connection; `also_seen` is what else.
    """

    hurt: Hurt
    line: str
    exit_code: int = 1
    seconds: int = END_SECONDS
    also_seen: str = ""
    restarts: int = 0


def _healed(hurt: Hurt, line: str) -> Fault:
    """One that another tritonserver mends."""
    return Fault(hurt, line, 0, also_seen="404", restarts=1)


@dataclass(frozen=True)
class Seen:
    """What came of it; seconds are those until the service did not look ready, and until it did again or was gone.

    `healed_at` is when it did again, `left` are processes that should be gone by then.
    """

    not_ready_after: float
    over_after: float
    left: Sequence[object]
    account: list[Sent]
    healed_at: float | None


@dataclass(frozen=True)
class Result:
    """What was seen of a fault, what was printed from there to the next one, and how the service ended."""

    seen: Seen
    output: str
    exit_code: int
    left: Sequence[object]


Results = dict[str, Future[dict[str, Result]]]


def _signal(part: str, number: signal.Signals) -> Hurt:
    return lambda running, _: running.part(part).send_signal(number)


def _sabotage(how: str) -> Hurt:
    return lambda _, file: file.write_text(how)


def _stubs_stand_still(lane: str) -> Hurt:
    return lambda _, file: file.with_name(f"{file.name} of stubs").write_text(lane)


def _kill_tritonserver_again_and_again(running: ServiceProcess, file: Path) -> None:
    """Until it may fail no more."""
    for _ in range(MOST_RESTARTS):
        starts = _starts(running)
        _kill_tritonserver(running, file)
        wait_for(lambda before=starts: _starts(running) > before)  # type: ignore[misc]
    _kill_tritonserver(running, file)


def _stop_the_service(running: ServiceProcess, _: Path) -> None:
    """Let it go on when it has been found out by its own server, which ends although nobody reads its log."""
    server = running.family()[1:]
    running.process.send_signal(signal.SIGSTOP)
    wait_for(lambda: not running.is_ready(), NOT_READY_SECONDS)
    assert not psutil.wait_procs(server[1:], timeout=END_SECONDS)[1]
    running.process.send_signal(signal.SIGCONT)


def _starts(running: ServiceProcess) -> int:
    return running.output().count("ready: embed_image")


KILL, STOP = signal.SIGKILL, signal.SIGSTOP
_kill_tritonserver = _signal("bin/tritonserver", KILL)
FAULTS: Mapping[str, Fault] = {
    # Whoever waits for a lane meanwhile may be turned away, as in any queue.
    "the encoder hangs": Fault(
        _sabotage("hangs"), "a decode or encode", seconds=HANGING_ENCODER_SECONDS, also_seen="503"
    ),
    "a decoder hangs": Fault(
        _sabotage("hangs in a helper's hands"), "a decode or encode", seconds=HANGING_ENCODER_SECONDS, also_seen="503"
    ),
    "tritonserver is killed again and again": Fault(
        _kill_tritonserver_again_and_again, "of tritonserver has died: SIGKILL; its last line: ", restarts=MOST_RESTARTS
    ),
    "tritonserver is killed": _healed(_kill_tritonserver, "of tritonserver has died: SIGKILL; its last line: "),
    "tritonserver hangs": _healed(
        _signal("bin/tritonserver", STOP), "tritonserver does not answer|the stub of .* hangs"
    ),
    "a stub is killed": _healed(_signal("embed_image_0_1", KILL), "of tritonserver has died: it is a stub"),
    "a stub hangs": _healed(
        _signal("embed_image_0_1", STOP),
        "the stub of embed_image-lane-1 (hangs|gets no batches, while others do)|died: it is a stub",
    ),
    "all stubs of embed_image stand still": _healed(_stubs_stand_still(""), "the canary was lost on its way to a lane"),
    "one stub of embed_image stands still": _healed(
        _stubs_stand_still("lane-1"), "the stub of embed_image-lane-1 gets no batches"
    ),
    "siglip's stub is killed": _healed(_signal("siglip_0_0", KILL), "of tritonserver has died: it is a stub"),
    "siglip's stub hangs": _healed(
        _signal("siglip_0_0", STOP),
        "the stub of siglip-lane-0 hangs|died: it is a stub",  # as it hands answers over
    ),
    "the service is killed": Fault(lambda running, _: running.process.kill(), "", -KILL),
    "the service hangs": _healed(_stop_the_service, "of tritonserver has died"),
    "the encoder raises": Fault(_sabotage("raises"), "the encoder on cpu fails batch after batch"),
    "the encoder is out of memory": Fault(_sabotage("is out of memory"), "the encoder on cpu fails batch after batch"),
    "the encoder is wrong": Fault(_sabotage("is wrong"), "the canary came back with", also_seen="wrong"),
    "the encoder computes no numbers": Fault(_sabotage("computes no numbers"), "one canary after another is answered"),
}


def _bring_about(names: Sequence[str], folder: Path) -> dict[str, Result]:
    """One service hurt by one fault after the other: by one alone, or by several that it heals of."""
    file = folder / "sabotage"
    environment = {"SABOTAGE": str(file)}
    with (
        service(folder, "--lanes", "2", module="tests.faults.sabotaged", environment=environment) as running,
        load(running, 3, PAUSE_SECONDS) as account,
    ):
        wait_for(lambda: _starts(running) == 1)
        begins, seen = list[int](), list[Seen]()
        for name in names:
            begins.append(len(running.output()))
            seen.append(_hurt(running, FAULTS[name], file, account))
        exit_code, left = _end(running)
        output = running.output()
    # Nothing that is printed is passed over, also not between two faults.
    said = [output[begin:end] for begin, end in pairwise([0, *begins[1:], len(output)])]
    return {name: Result(one, text, exit_code, left) for name, one, text in zip(names, seen, said, strict=True)}


def _end(running: ServiceProcess) -> tuple[int, Sequence[object]]:
    """The exit code of a service, which has ended by itself or is told to, and what is left of it."""
    family = [] if running.process.poll() is not None else running.family()[1:]
    exit_code = running.stop() if family else running.process.returncode
    _, left = psutil.wait_procs(family, timeout=END_SECONDS)
    return exit_code, [*left, *running.shared_memory()]


def _hurt(running: ServiceProcess, fault: Fault, file: Path, account: list[Sent]) -> Seen:
    """Bring it about, and wait until it is over."""
    sent = len(account)
    wait_for(lambda: len(account) > sent + LEAST_SENT)
    family, starts = running.family(), _starts(running)
    fault.hurt(running, file)
    hurt_at = time.monotonic()
    wait_for(lambda: not running.is_ready())
    not_ready_after = time.monotonic() - hurt_at
    healed_at = _wait_until_healed(running, starts, account) if fault.exit_code == 0 else None
    if healed_at is None:
        running.process.wait(fault.seconds + NOT_READY_SECONDS)
    _, left = psutil.wait_procs(family[1:], timeout=END_SECONDS)
    over_after = (healed_at or time.monotonic()) - hurt_at
    return Seen(not_ready_after, over_after, left, account[sent:], healed_at)


def _sent_since(at: float, account: list[Sent]) -> list[Sent]:
    return [sent for sent in account if sent.at > at][:LEAST_SENT]


def _right_since(at: float, account: list[Sent]) -> int:
    return sum(sent.outcome == "right" for sent in account if sent.at > at)


def _wait_until_healed(running: ServiceProcess, starts: int, account: list[Sent]) -> float:
    """When the same process answered again, after some more answers."""
    wait_for(lambda: _starts(running) > starts and running.is_ready())
    healed_at = time.monotonic()
    wait_for(lambda: len(_sent_since(healed_at, account)) == LEAST_SENT)
    assert f"embed_triton_restarts_total {starts}.0" in running.metrics(), running.output()
    return healed_at


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """All faults that are asked for, a few services at a time: most of a fault's time is spent waiting.

    So they start on a machine that is busy, and all of them must become ready. Those that are healed share a few
    services: to start one takes as long as to find out about a fault.
    """
    tests = (item for item in request.session.items if isinstance(item, pytest.Function) and item.path == request.path)
    names = [str(test.callspec.params["name"]) for test in tests if hasattr(test, "callspec")]
    healed = [name for name in names if FAULTS[name].exit_code == 0]
    shared = [healed[first::AT_A_TIME] for first in range(AT_A_TIME)]
    groups = [*filter(None, shared), *([name] for name in names if name not in healed)]
    with ThreadPoolExecutor(AT_A_TIME) as threads:
        futures = [threads.submit(_bring_about, group, tmp_path_factory.mktemp("fault")) for group in groups]
    return {name: future for group, future in zip(groups, futures, strict=True) for name in group}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", FAULTS)
def test_a_service_that_cannot_answer_does_not_look_ready_and_heals_or_ends(name: str, results: Results) -> None:
    fault, result = FAULTS[name], results[name].result()[name]
    seen = result.seen
    assert (result.exit_code, [*seen.left, *result.left]) == (fault.exit_code, []), result.output
    errors = [line for line in result.output.splitlines() if line.startswith("error: ")]
    failures = [line for line in result.output.splitlines() if "starting it anew" in line]
    assert (len(errors), len(failures)) == (fault.exit_code == 1, fault.restarts), result.output
    assert all(re.search(fault.line, line) for line in errors + failures), result.output
    assert seen.not_ready_after < max(NOT_READY_SECONDS, fault.seconds - NOT_READY_SECONDS)
    assert seen.over_after < fault.seconds
    outcomes = {sent.outcome for sent in seen.account}
    assert outcomes <= {"right", "500", "no connection", fault.also_seen}
    assert {"right", "no connection"} <= outcomes
    if seen.healed_at is not None:
        assert {sent.outcome for sent in _sent_since(seen.healed_at, seen.account)} == {"right"}


def _has_healed(running: ServiceProcess) -> bool:
    with contextlib.suppress(requests.HTTPError):  # a scrape needs a tritonserver, too
        return "embed_triton_restarts_total 1.0" in running.metrics() and running.is_ready()
    return False


def _tell(family: Sequence[psutil.Process], number: signal.Signals) -> None:
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


@pytest.mark.timeout(600)
def test_a_short_freeze_costs_nobody_an_answer(tmp_path: Path) -> None:
    """As where others take the processors: by itself Triton gives up a stub that has not been heard of for a second."""
    with service(tmp_path) as running, load(running, 30) as account:
        wait_for(lambda: len(account) > 300)
        for stub in (process for process in running.family() if process.name() == "triton_python_backend_stub"):
            _tell([stub], STOP)
            time.sleep(SHORT_FREEZE_SECONDS)
            _tell([stub], signal.SIGCONT)
        sent = len(account)
        wait_for(lambda: len(account) > sent + 300)
        assert "embed_triton_restarts_total 0.0" in running.metrics(), running.output()
    assert {each.outcome for each in account} == {"right"}, running.output()


@pytest.mark.timeout(600)
def test_after_a_freeze_no_image_gets_the_embedding_of_another(tmp_path: Path) -> None:
    """As by a container's pause: Triton takes its stubs for dead, and their answers for those of later batches."""
    with service(tmp_path) as running, load(running, 30) as account:
        wait_for(lambda: len(account) > 300)
        for _ in range(FREEZES):
            family = running.family()
            _tell(family, STOP)
            time.sleep(FREEZE_SECONDS)
            _tell(family, signal.SIGCONT)
            from_then = time.monotonic() + RESTART_SECONDS
            wait_for(lambda at=from_then: _right_since(at, account) >= LEAST_SENT)  # type: ignore[misc]
        wait_for(running.is_ready)
    outcomes = Counter(sent.outcome for sent in account)
    assert outcomes.keys() <= {"right", "500", "404", "no connection"}, (outcomes, running.output())
    assert outcomes["right"] > 300


@pytest.mark.timeout(600)
def test_a_stub_that_freezes_while_triton_takes_its_answers_away_gives_them_to_nobody_else(tmp_path: Path) -> None:
    """Triton gives them up meanwhile."""
    file = tmp_path / "sabotage"
    environment, frozen = {"SABOTAGE": str(file)}, file.with_name(f"{file.name} of an answer")
    with (
        service(tmp_path, module="tests.faults.sabotaged", environment=environment) as running,
        load(running, 30) as account,
    ):
        for _ in range(FREEZES):
            sent, starts, family = len(account), _starts(running), running.family()
            wait_for(lambda before=sent: len(account) > before + 300)  # type: ignore[misc]
            frozen.touch()
            wait_for(lambda: not frozen.exists())
            time.sleep(FREEZE_SECONDS)
            _tell(family, signal.SIGCONT)
            _wait_until_healed(running, starts, account)
    outcomes = Counter(each.outcome for each in account)
    assert outcomes.keys() <= {"right", "500", "404", "no connection"}, (outcomes, running.output())


def test_a_service_whose_log_nobody_reads_goes_on(tmp_path: Path) -> None:
    """As where a terminal is held: it answers what it has to log, heals, and ends."""
    file = tmp_path / "sabotage"
    environment = {"SABOTAGE": str(file)}
    with service(tmp_path, module="tests.faults.sabotaged", environment=environment) as running:
        file.write_text("has a log that nobody reads")
        assert post_raw(running, photographs()[0]).status_code == 200
        assert not file.exists()
        for _ in range(3):
            assert post_raw(running, b"no image").status_code == 400
        running.part("bin/tritonserver").kill()
        wait_for(lambda: _has_healed(running))
        assert post_raw(running, photographs()[0]).status_code == 200
        assert running.stop() == 0
