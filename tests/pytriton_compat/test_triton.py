"""What becomes of this process when tritonserver cannot start, or ends in the middle of something."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import TritonConfig

from service.access import Access
from service.errors import ServiceFailure, StartupFault
from service.pytriton_compat import triton as room
from service.pytriton_compat import tritonserver
from service.pytriton_compat.host import check_shared_memory
from service.pytriton_compat.server_processes import has_died, start
from service.pytriton_compat.triton import SupervisedTriton, TritonFailure
from service.pytriton_compat.tritonserver import Tritonserver


def _triton(folder: Path, http_port: int) -> SupervisedTriton:
    config = TritonConfig(http_address="127.0.0.1", http_port=http_port, allow_metrics=False)
    return SupervisedTriton(Tritonserver(config, folder, Access(), 2**20, verbose=False), 2**20)


@pytest.mark.parametrize("name", ["my files", "größe", "$(reboot)", "a;b", "a:b", "it's", "\udce8"])
def test_a_path_with_which_it_could_not_start_its_stubs_is_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    with pytest.raises(StartupFault, match="set TMPDIR"):
        _triton(folder, 1)
    link = tmp_path / "link"
    link.symlink_to(folder)
    with pytest.raises(StartupFault, match="set TMPDIR"):
        _triton(link, 1)
    assert os.listdir(folder) == []


def test_a_server_that_ends_while_it_is_asked_is_told_in_one_line(tmp_path: Path) -> None:
    """It takes the request and is gone."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def end() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(2**16)

        threading.Thread(target=end, daemon=True).start()
        triton = _triton(tmp_path, listener.getsockname()[1])
        triton._unloadable.mkdir()
        with pytest.raises(ServiceFailure, match="tritonserver could not be asked"):
            triton.report_not_ready()


def test_a_second_signal_while_a_server_that_hangs_is_asked_is_told_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def on_signal(*_: object) -> None:
        raise ServiceFailure("stopped at once")

    before = signal.signal(signal.SIGALRM, on_signal)
    try:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            triton = _triton(tmp_path, listener.getsockname()[1])
            triton._unloadable.mkdir()
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(ServiceFailure, match="stopped at once"):
                triton.report_not_ready()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert capfd.readouterr() == ("", "")


def test_a_drain_that_the_server_refuses_is_a_failure(fake: SupervisedTriton, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = [Tensor(name="X", dtype=np.float32, shape=(1,))]
    fake.bind("model", [], tensors, tensors, ModelConfig(), {})
    monkeypatch.setattr(fake._server, "ask_to", lambda *_: False)
    with pytest.raises(ServiceFailure, match="tritonserver refuses to unload model"):
        fake.drain(0)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SupervisedTriton:
    """One that starts at once, as it should, without a tritonserver."""
    triton = _triton(tmp_path, 1)
    parts: dict[str, Any] = {
        "is_running": lambda: True,
        "launch": lambda: None,
        "reports": lambda *_: True,
        "hide_tokens": lambda: None,
        "processes": lambda: [psutil.Process()],
    }
    for name, part in parts.items():
        monkeypatch.setattr(triton._server, name, part)
    monkeypatch.setattr(room, "limit_files", lambda *_: None)
    monkeypatch.setattr(tritonserver, "listens", lambda *_: True)
    triton._server.log.add(b"E1128 no such file\n")
    return triton


@pytest.mark.parametrize("has_opened_its_ports", [True, False])
def test_a_server_that_has_opened_its_ports_is_not_given_up_for_a_signal(
    fake: SupervisedTriton, monkeypatch: pytest.MonkeyPatch, has_opened_its_ports: bool
) -> None:
    """It may have accepted requests by then, unseen."""
    answers, interrupted = iter([False, has_opened_its_ports, has_opened_its_ports]), threading.Event()
    interrupted.set()
    monkeypatch.setattr(fake._server, "reports", lambda *_: next(answers))
    assert fake.start(interrupted, 60) is has_opened_its_ports


@pytest.mark.parametrize(
    ("seconds", "parts", "message"),
    [
        (60, {"is_running": lambda: False}, "ended while it started; its last line: E11"),
        (0, {}, "tritonserver was not ready after 0 s"),
        (60, {"reports": lambda *_: True, "processes": list}, "ended when it was ready; its last line: E1128"),
    ],
)
def test_a_start_that_fails_says_how(
    fake: SupervisedTriton, monkeypatch: pytest.MonkeyPatch, seconds: float, parts: dict[str, Any], message: str
) -> None:
    for name, part in {"reports": lambda *_: False, **parts}.items():
        monkeypatch.setattr(fake._server, name, part)
    with pytest.raises(StartupFault, match=message):
        fake.start(threading.Event(), seconds)


def test_it_is_not_ready_because_another_one_answers_at_its_port(
    fake: SupervisedTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tritonserver, "listens", lambda *_: False)
    with pytest.raises(StartupFault, match="tritonserver was not ready after 0 s"):
        fake.start(threading.Event(), 0)


def test_it_does_not_start_with_too_little_shared_memory(
    fake: SupervisedTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub: Any = None
    fake._lanes, needed = [stub] * 3, 12 * 2**20
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed))
    check_shared_memory(3)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed - 1))
    with pytest.raises(StartupFault, match="/dev/shm has 11 MiB free, the start takes 12 and large images more"):
        fake.start(threading.Event(), 60)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("noexec", " is mounted noexec, and Triton runs from there; set TMPDIR to another folder"),
        ("size=8m", " has 7 MiB free, the start takes 22; make room, or set TMPDIR to another folder"),
    ],
)
def test_it_says_what_is_wrong_with_the_disk(tmp_path: Path, options: str, message: str) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", tmp_path], check=False).returncode:
        pytest.skip("this machine lets us mount nothing")
    try:
        (folder := tmp_path / "embed-1").mkdir()
        (folder / "fill").write_bytes(bytes(4096))
        with pytest.raises(StartupFault, match=f"^{tmp_path}{message}$"):
            _triton(folder, 0)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_it_says_that_triton_wants_a_place_in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(StartupFault, match=r"^Triton cannot write to /tmp, and has to wherever TMPDIR is "):
        _triton(tmp_path, 0)


def test_a_stub_without_batches_has_not_failed_while_shared_memory_is_scarce(
    fake: SupervisedTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton answers a batch for which it cannot grow, and no lane gets to see it."""
    passed_over = SimpleNamespace(passed_over=lambda _: SimpleNamespace(name="embed_image-lane-1"))
    monkeypatch.setattr(fake, "_turns", passed_over, raising=False)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(used=33, free=31))
    fake.check_alive(2)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(used=31, free=33))
    with pytest.raises(TritonFailure, match="the stub of embed_image-lane-1 gets no batches, while others do"):
        fake.check_alive(2)


def test_a_start_does_not_wait_for_a_stub_that_was_killed_before_it_said_a_word(
    fake: SupervisedTriton, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Triton would, for as long as it may take to start."""
    stub = shutil.copy(shutil.which("true") or "", tmp_path / "triton_python_backend_stub")
    monkeypatch.setattr(fake._server, "reports", lambda *_: False)
    monkeypatch.setattr(room, "_LOSS_SECONDS", 0.1)
    with subprocess.Popen([stub]) as process:
        monkeypatch.setattr(fake._server, "processes", lambda: [psutil.Process(), psutil.Process(process.pid)])
        with pytest.raises(StartupFault, match="tritonserver was not ready after 0 s"):
            fake.start(threading.Event(), 60)


def test_a_start_waits_on_after_a_stub_that_has_ended_and_is_gone(
    fake: SupervisedTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Triton clears away those that it has ended itself; on a busy machine the others may take long."""
    looks, interrupted = iter([True, *[False] * 30]), threading.Event()

    def has_lost_a_stub() -> bool:
        lost = next(looks, None)
        if lost is None:
            interrupted.set()
        return bool(lost)

    monkeypatch.setattr(fake._server, "has_lost_a_stub", has_lost_a_stub)
    monkeypatch.setattr(fake._server, "reports", lambda *_: False)
    monkeypatch.setattr(room, "_LOSS_SECONDS", 1.0)
    assert not fake.start(interrupted, 60)


def test_a_workspace_that_lies_too_deep_for_a_socket_is_refused(tmp_path: Path) -> None:
    """By Linux itself it would be with a start that never ends."""
    deep = tmp_path / ("x" * 60)
    deep.mkdir()
    tensors = [Tensor(name="X", dtype=np.float32, shape=(1,))]
    with pytest.raises(StartupFault, match="is too long a path for a socket; set TMPDIR to a shorter one"):
        _triton(deep, 1).bind("model", [lambda _: []], tensors, tensors, ModelConfig(), {})


def test_nobody_waits_for_a_stub_of_a_server_that_never_started_it() -> None:
    tensors = [Tensor(name="X", dtype=np.float32, shape=(1,))]
    # Not below pytest's folders, which lie too deep for a socket.
    with tempfile.TemporaryDirectory(prefix="test-") as folder:
        triton = _triton(Path(folder), 1)
        triton.bind("model", [lambda _: [], lambda _: []], tensors, tensors, ModelConfig(), {})
        waiting = [*triton._lanes, *triton._pulses]
        assert len(waiting) == 4 and all(thread.is_alive() for thread in waiting)
        triton.stop()
        for thread in waiting:
            thread.join(60)
        assert not any(thread.is_alive() for thread in waiting)


def test_a_stub_that_a_server_was_just_starting_when_it_was_killed_ends_too(tmp_path: Path) -> None:
    """It has not come so far that it would notice by itself, and no list has it."""
    triton = _triton(tmp_path, 1)
    server = triton._server._process = start(["sh", "-c", "sleep 600 & echo $!; kill -KILL $$"], os.environ)
    assert server.stdout is not None
    with server.stdout as output:
        stub = psutil.Process(int(output.readline()))
    try:
        assert server.wait(60) == -signal.SIGKILL
        triton.stop()
        assert has_died(stub)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            stub.kill()


DRAINS: dict[str, tuple[bool, dict[str, Any], str]] = {
    "its stub has ended in order": (False, {"was_let_go": True}, ""),
    "its stub has died with answers that its lane has sent": (
        False, {}, "a stub has died before everything accepted was answered",
    ),
    "its stub hangs": (
        True, {"fell_silent": True}, "tritonserver or a stub hangs before everything accepted was answered",
    ),
    "its stub goes on without a batch": (True, {}, ""),
    "its stub goes on with one": (
        True, {"in_the_works": 1}, "requests were still in flight after 0 s and are dropped",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DRAINS)
def test_a_drain_is_a_success_where_everything_accepted_was_answered(
    fake: SupervisedTriton, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    is_alive, state, message = DRAINS[name]
    lane: Any = SimpleNamespace(model="embed_image", batches=7, in_the_works=0, was_let_go=False, fell_silent=False)
    vars(lane).update(state, is_alive=lambda: is_alive, join=lambda _: None)
    fake._lanes, fake._pulses, fake._processes = [lane], [lane], [psutil.Process()] * (1 + is_alive)
    monkeypatch.setattr(fake._server, "ask_to", lambda *_: True)
    monkeypatch.setattr(room, "_DRAIN_SECONDS", 0.1)
    with pytest.raises(ServiceFailure, match=f"^{message}$") if message else contextlib.nullcontext():
        fake.drain(0)
    assert fake._drained == (not message)
