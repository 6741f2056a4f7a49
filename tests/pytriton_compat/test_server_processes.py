"""The end of processes that listen."""

import subprocess
import sys

import psutil

from service.ports import check_ports_are_free
from service.pytriton_compat.server_processes import is_gone

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
