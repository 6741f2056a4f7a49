"""What processes are started with, and the end of those that listen."""

import os
import subprocess
import sys

import psutil
import pytest

from service.ports import check_ports_are_free
from service.pytriton_compat.server_processes import is_gone, room_for_server


@pytest.mark.parametrize(("own", "expected"), [(None, ""), ("glibc.malloc.perturb=0", "glibc.malloc.perturb=0:")])
def test_memory_is_clean_whatever_else_is_tuned_and_however_often_a_server_is_started(
    monkeypatch: pytest.MonkeyPatch, own: str | None, expected: str
) -> None:
    monkeypatch.setattr(os, "environ", {} if own is None else {"GLIBC_TUNABLES": own})
    for _ in range(2):
        with room_for_server():
            tunables = os.environ["GLIBC_TUNABLES"]
            assert tunables == f"{expected}glibc.malloc.perturb=223:glibc.malloc.tcache_max=512"


# It listens, and its memory takes a while to be given back when it is killed.
LISTENER = """
import socket, threading, time
listener = socket.create_server(("127.0.0.1", 0))
memory = bytearray(2**29)
for _ in range(50):
    threading.Thread(target=time.sleep, args=(100,)).start()
print(listener.getsockname()[1], flush=True)
"""


def test_a_killed_processis_gone_when_its_port_is_free() -> None:
    """Its first thread is a zombie before the others have ended, and one of these may hold the port."""
    with subprocess.Popen([sys.executable, "-c", LISTENER], stdout=subprocess.PIPE, text=True) as listener:
        assert listener.stdout is not None
        port = int(listener.stdout.readline())
        process = psutil.Process(listener.pid)
        listener.kill()
        while not is_gone(process):
            pass
        check_ports_are_free("127.0.0.1", {"http_port": port})
