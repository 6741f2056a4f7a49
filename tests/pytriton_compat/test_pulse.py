"""A pulse is there as long as both sides send, and is gone soon after one stops or leaves."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from service.pytriton_compat import pulse
from service.pytriton_compat.pulse import Pulse, keep_pulse

JOIN_SECONDS = 60


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "_BEAT_SECONDS", 0.05)


@pytest.fixture
def connected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None) -> Iterator[tuple[Pulse, socket.socket]]:
    """The service's side, running, and the stub's end of the connection."""
    monkeypatch.chdir(tmp_path)  # pytest's own lie too deep for a socket
    ours = Pulse(Path("pulse-0.sock"))
    ours.start()
    with socket.socket(socket.AF_UNIX) as stub:
        stub.connect("pulse-0.sock")
        yield ours, stub
    ours.join(JOIN_SECONDS)
    assert not ours.is_alive()


def test_it_goes_on_while_both_sides_send(connected: tuple[Pulse, socket.socket]) -> None:
    ours, stub = connected
    other = threading.Thread(target=keep_pulse, args=(stub,), daemon=True)
    other.start()
    ours.join(1)  # a hundred beats
    assert ours.is_alive() and other.is_alive()
    stub.shutdown(socket.SHUT_RDWR)
    other.join(JOIN_SECONDS)
    assert not other.is_alive()


def test_it_ends_when_the_other_side_falls_silent(connected: tuple[Pulse, socket.socket]) -> None:
    ours, stub = connected
    stub.send(b"\0")
    ours.join(JOIN_SECONDS)
    assert not ours.is_alive() and ours.fell_silent


def test_it_ends_when_the_other_side_has_left(connected: tuple[Pulse, socket.socket]) -> None:
    ours, stub = connected
    stub.close()
    ours.join(JOIN_SECONDS)
    assert not ours.is_alive() and not ours.fell_silent


def test_it_goes_on_where_the_other_side_is_late_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It misses five beats in a row, sends one, and leaves in the end."""
    ours, theirs = socket.socketpair()
    beats = iter(range(1, 101))

    def beat(_: float) -> None:
        if (number := next(beats)) == 100:
            theirs.close()
        elif number % 6 == 5:
            theirs.send(b"\0")

    monkeypatch.setattr(pulse, "time", SimpleNamespace(sleep=beat, clock_gettime=lambda _: 0.0))
    with ours:
        assert not keep_pulse(ours) and not list(beats)


@pytest.mark.parametrize(("computes", "beats"), [(0.0, 6), (0.02, 6), (0.04, 60)])
def test_who_is_silent_but_computes_is_given_a_minute(
    monkeypatch: pytest.MonkeyPatch, computes: float, beats: int
) -> None:
    """Not all that computes lets other threads run meanwhile."""
    slept: list[float] = []

    def processor_seconds(clock: int) -> float:
        assert clock == ~os.getpid() << 3 | 2, "it is another process'"
        return computes * len(slept)

    monkeypatch.setattr(pulse, "time", SimpleNamespace(sleep=slept.append, clock_gettime=processor_seconds))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert keep_pulse(ours)
    assert len(slept) == beats


def test_what_a_process_computes_is_known_to_others_until_it_ends() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        first = pulse._processor_seconds(busy.pid)
        while pulse._processor_seconds(busy.pid) <= first:
            pass
        busy.kill()
    assert pulse._processor_seconds(busy.pid) == 0
