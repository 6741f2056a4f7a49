"""Whether the process at the other end of a Unix socket still runs.

This file runs on both sides (it is copied beside `stub_model.py`) and therefore imports nothing of the service. The
service learns of a stub that hangs, however idle it is; a stub learns of a service that hangs or has been killed.
"""

import contextlib
import socket
import threading
import time
from pathlib import Path

_BEAT_SECONDS = 1.0
_MOST_MISSED = 6


def keep_pulse(connection: socket.socket) -> bool:
    """Exchange a byte a second; return when the other side has closed the connection, or stopped sending: then True.

    Beats are counted, not seconds: where everything was frozen together, and runs again, none is missing.
    """
    missed = 0
    while missed < _MOST_MISSED:
        try:
            connection.send(b"\0", socket.MSG_DONTWAIT)
            if not connection.recv(1024, socket.MSG_DONTWAIT):
                return False
            missed = 0
        except BlockingIOError:
            missed += 1
        except OSError:
            return False
        time.sleep(_BEAT_SECONDS)
    return True


class Pulse(threading.Thread):
    """The service's side: alive as long as the stub that connects is.

    Attributes:
        fell_silent: whether the stub is there, but hangs.
    """

    def __init__(self, path: Path) -> None:
        """Listen at `path` from now on."""
        super().__init__(name=path.stem, daemon=True)
        self.fell_silent = False
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)

    def run(self) -> None:
        """Wait for the stub, and end when it has."""
        with self._listener:
            connection, _ = self._listener.accept()
        with contextlib.closing(connection):
            self.fell_silent = keep_pulse(connection)
