"""What processes are started with, and the end of those that listen."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from service.errors import StartupFault
from service.process.ports import check_ports_are_free
from service.pytriton_compat.server_processes import is_gone, launch_conditions, listens


@pytest.mark.parametrize("own", ["", "own.so"])
def test_a_servers_library_comes_after_the_operators_and_is_for_it_alone(
    monkeypatch: pytest.MonkeyPatch, own: str
) -> None:
    """Of two that hand out memory, the second one must not be used: the first one takes it back."""
    monkeypatch.setenv("LD_PRELOAD", own)
    monkeypatch.setenv("LD_LIBRARY_PATH", own)
    for library, expected in ((Path("ours.so"), [own, "ours.so"]), (None, [own])):
        with launch_conditions(library, Path("ours")):
            assert os.environ["LD_PRELOAD"] == ":".join(filter(None, expected))
            assert os.environ["LD_LIBRARY_PATH"] == ":".join(filter(None, ["ours", own]))
        assert os.environ["LD_PRELOAD"] == os.environ["LD_LIBRARY_PATH"] == own


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
    with pytest.raises(StartupFault, match="may open 64 files"), launch_conditions(None, Path("ours")):
        pass
