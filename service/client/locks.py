"""One run at a time into one place, whatever machine it is on.

Comes in: the path of a file that is there for nothing else. Goes out: its lock. It must not know what is written.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


class Busy(Exception):
    """Another run is writing there. `str(error)` is one line."""


@contextlib.contextmanager
def locked(path: Path, where: object) -> Iterator[None]:
    """Hold the lock of a file, which is made for it and goes with it; `where` is the place's name for the error.

    A file, since on NFS the lock of a folder holds on its own machine only. It is gone with the process, however that
    ends.

    Raises:
        Busy: another process has it.
        OSError: the file cannot be made.
    """
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if not _take(lock, path):
            raise Busy(f"another run is writing {where}")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(lock)


def _take(lock: int, path: Path) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever had it may have removed it since it was opened here.
        return os.path.samestat(os.fstat(lock), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False
