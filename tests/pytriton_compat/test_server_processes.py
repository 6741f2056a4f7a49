"""What processes are started with, and the end of those that listen."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from service.errors import StartupFault
from service.process.ports import check_ports_are_free
from service.pytriton_compat.server_processes import environment, is_gone, listens, start, within


@pytest.mark.parametrize(
    ("own", "preload", "preloaded", "searched"),
    [
        ("", None, "", "first:last"),
        ("", Path("ours.so"), "ours.so", "first:last"),
        ("own.so", None, "own.so", "first:own.so:last"),
        ("own.so", Path("ours.so"), "own.so:ours.so", "first:own.so:last"),
    ],
)
def test_a_servers_library_comes_after_the_operators(
    monkeypatch: pytest.MonkeyPatch, own: str, preload: Path | None, preloaded: str, searched: str
) -> None:
    """Of two that hand out memory, the second one must not be used: the first one takes it back."""
    monkeypatch.setenv("LD_PRELOAD", own)
    monkeypatch.setenv("LD_LIBRARY_PATH", own)
    variables = environment(preload, Path("first"), Path("last"), 7, 9)
    assert (variables["LD_PRELOAD"], variables["LD_LIBRARY_PATH"]) == (preloaded, searched)


def test_a_server_heeds_what_the_operator_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "9")
    monkeypatch.setenv("PATH", "/opt/bin")
    variables = environment(None, Path("first"), Path("last"), 7, 9)
    assert (variables["MALLOC_ARENA_MAX"], variables["PATH"]) == ("9", f"{sys.exec_prefix}/bin:/opt/bin")


def test_a_server_sees_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take memory of each one, and computes on none."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert environment(None, Path("first"), Path("last"), 7, 9)["CUDA_VISIBLE_DEVICES"] == ""


def test_a_server_does_not_end_of_a_file_that_is_larger_than_it_may_be(tmp_path: Path) -> None:
    """Its shared memory is one."""
    write = 'ulimit -f 0; echo x > "$0"; echo it goes on'
    process = start(["sh", "-c", write, str(tmp_path / "file")], os.environ)
    output, _ = process.communicate(timeout=60)
    assert (output.splitlines()[-1:], process.returncode) == ([b"it goes on"], 0)


HAS_BEEN_GIVEN = """
import ctypes, resource
number = ctypes.c_int()
ctypes.CDLL(None).prctl(2, ctypes.byref(number))  # PR_GET_PDEATHSIG
print(number.value, *(resource.getrlimit(limit)[0] for limit in (resource.RLIMIT_STACK, resource.RLIMIT_NOFILE)))
"""


def test_a_server_gets_what_it_needs_without_a_copy_of_this_process() -> None:
    """In a copy that has to run Python, as `preexec_fn` makes one, another thread's lock could be waited for."""
    copies = list[str]()
    os.register_at_fork(before=lambda: copies.append("made"))
    (_, most_stack), (files, most_files) = map(resource.getrlimit, (resource.RLIMIT_STACK, resource.RLIMIT_NOFILE))
    process = start([sys.executable, "-c", HAS_BEEN_GIVEN], os.environ)
    output, _ = process.communicate(timeout=60)
    limits = within(most_stack, 2**27), within(most_files, max(2**16, files))
    assert output.split() == [b"%d" % number for number in (signal.SIGTERM, *limits)]
    assert not copies


# It listens, and its memory takes a while to be given back when it is killed.
LISTENER = """
import socket, threading, time
listener = socket.create_server(("127.0.0.1", 0))
memory = bytearray(2**29)
for _ in range(50):
    threading.Thread(target=time.sleep, args=(100,)).start()
print(listener.getsockname()[1], flush=True)
"""


def test_a_killed_process_is_gone_when_its_port_is_free() -> None:
    """Its first thread is a zombie before the others have ended, and one of these may hold the port."""
    with subprocess.Popen([sys.executable, "-c", LISTENER], stdout=subprocess.PIPE, text=True) as listener:
        assert listener.stdout is not None
        port = int(listener.stdout.readline())
        process = psutil.Process(listener.pid)
        assert listens([psutil.Process(), process], port) and not listens([psutil.Process()], port)
        listener.kill()
        while not is_gone(process):
            pass
        assert not listens([process], port)
        check_ports_are_free("127.0.0.1", {"http_port": port})


def test_too_few_open_files_are_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """tritonserver would start for ever."""
    monkeypatch.setattr("resource.getrlimit", lambda _: (64, 64))
    with pytest.raises(StartupFault, match="may open 64 files"):
        start(["true"], {})
