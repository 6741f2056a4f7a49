"""A place for the files of one run and a name for its shared memory, which both end with it.

Comes in: nothing. Goes out: a folder below TMPDIR. It must not know what is put there.

A process that is killed removes nothing, and TMPDIR and /dev/shm may outlive it, as in a pod whose container is started
anew: unless its successor clears up, they are full one day. Whether a run is over tells a lock on its folders, which
ends with the process, however that ends; process ids are no help, since every container has the same.
"""

import contextlib
import fcntl
import logging
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")
# Others call theirs embed-something, too, in folders that are everybody's.
_NAME = re.compile(r"embed-\d+-[0-9a-f]{8}")


@contextlib.contextmanager
def new_workspace() -> Iterator[Path]:
    """A new folder below TMPDIR. What killed runs of the same user have left is removed first.

    Shared memory that is named like the folder, followed by `-` and anything, is removed with it at the end.
    """
    temporary = Path(tempfile.gettempdir())
    for parent in (temporary, SHARED_MEMORY):
        _remove_abandoned(parent)
    name = f"embed-{os.getpid()}-{secrets.token_hex(4)}"
    with _locked_folder(SHARED_MEMORY, name), _locked_folder(temporary, name) as folder:
        yield folder


@contextlib.contextmanager
def _locked_folder(parent: Path, name: str) -> Iterator[Path]:
    unlocked, folder = parent / f".{name}", parent / name
    unlocked.mkdir(mode=0o700)
    descriptor = os.open(unlocked, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    unlocked.rename(folder)  # only now does it have a name that others look for
    try:
        yield folder
    finally:
        try:
            _remove(folder)
        except OSError as error:  # raised, it would take the place of what ended the run
            logger.warning("%s stays until the next start: %s", folder, error.strerror)
        os.close(descriptor)


def _remove_abandoned(parent: Path) -> None:
    for folder in filter(lambda path: _NAME.fullmatch(path.name), parent.glob("embed-*")):
        with contextlib.suppress(OSError):  # it is no folder, or a living run holds its lock
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(descriptor).st_uid == os.geteuid():
                    _remove(folder)
            finally:
                os.close(descriptor)


def _remove(folder: Path) -> None:
    for segment in folder.parent.glob(f"{folder.name}-*"):
        with contextlib.suppress(OSError):  # another user may have made one of such a name
            segment.unlink()
    with contextlib.suppress(FileNotFoundError):  # whatever clears TMPDIR of old files has been there
        shutil.rmtree(folder)
