"""Whether the process at the other end of a Unix socket still runs.

This file runs on both sides (it is copied beside `stub_model.py`) and therefore imports nothing of the service. The
service learns of a stub that hangs, however idle it is; a stub learns of a service that hangs or has been killed.
"""

import contextlib
import socket
import struct
import threading
import time
from pathlib import Path

_BEAT_SECONDS = 1.0
_MOST_MISSED = 6
# Of beats in a row where it computes meanwhile: a decoder may take long, and let nothing else of its process run.
_MOST_LATE = 60
_COMPUTES = 0.03  # of a processor's time: more than threads take that wait for Python's lock


def keep_pulse(connection: socket.socket) -> bool:
    """Exchange a byte a second; return when the other side has closed the connection, or stopped sending: then True.

    Beats are counted, not seconds: where everything was frozen together, and runs again, none is missing.
    """
    process, *_ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    missed, late, computed = 0, 0, _processor_seconds(process)
    while missed < _MOST_MISSED and late < _MOST_LATE:
        before, computed = computed, _processor_seconds(process)
        try:
            connection.send(b"\0", socket.MSG_DONTWAIT)
            if not connection.recv(1024, socket.MSG_DONTWAIT):
                return False
            missed = late = 0
        except BlockingIOError:
            late += 1
            missed += computed - before < _COMPUTES * _BEAT_SECONDS
        except OSError:
            return False
        time.sleep(_BEAT_SECONDS)
    return True


def _processor_seconds(process: int) -> float:
    """What it has had of the processors so far, by the clock that clock_getcpuclockid(3) tells of."""
    with contextlib.suppress(OSError):  # it has ended
        return time.clock_gettime(~process << 3 | 2)
    return 0.0


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
