"""What Triton takes of the machine: a folder for its programs, and shared memory for the requests that stubs work on.

It must not know what is put there.
"""

import contextlib
import os
import re
import shutil
from pathlib import Path

from service.errors import StartupFault
from service.process.workspace import SHARED_MEMORY

# Triton starts its stubs by a shell command in which nothing is quoted, and PyTriton writes ASCII alone.
_USABLE_PATH = re.compile(r"[\w/.+@=-]+", re.ASCII)
_DISK_MEBIBYTES = 22  # that Triton's programs take
_STUB_MEBIBYTES = 4  # that a stub takes of shared memory before its first request


def check_folder(folder: Path) -> None:
    """Find out before Triton does, which says only what it could not do.

    Raises:
        StartupFault: Triton cannot use the folder, or /tmp.
    """
    other, disk = "set TMPDIR to another folder", os.statvfs(folder)
    if not _USABLE_PATH.fullmatch(str(folder)):
        raise StartupFault(f"Triton cannot use {folder}; set TMPDIR to a path of letters, digits and /._+@=- alone")
    if disk.f_flag & os.ST_NOEXEC:
        raise StartupFault(f"{folder.parent} is mounted noexec, and Triton runs from there; {other}")
    if (free := disk.f_bavail * disk.f_frsize // 2**20) < _DISK_MEBIBYTES:
        raise StartupFault(
            f"{folder.parent} has {free} MiB free, the start takes {_DISK_MEBIBYTES}; make room, or {other}"
        )
    if not os.access("/tmp", os.W_OK | os.X_OK):
        raise StartupFault("Triton cannot write to /tmp, and has to wherever TMPDIR is (a container: --tmpfs /tmp)")


def check_shared_memory(stubs: int) -> None:
    """Find out before Triton does, which says only that it failed to load its models.

    Raises:
        StartupFault: there is too little for the start of so many stubs.
    """
    needed, free = stubs * _STUB_MEBIBYTES, shutil.disk_usage(SHARED_MEMORY).free // 2**20
    if free < needed:
        raise StartupFault(
            f"{SHARED_MEMORY} has {free} MiB free, the start takes {needed} and large images more;"
            " make it larger (of a container: --shm-size 1g) or --lanes fewer"
        )


def is_shared_memory_scarce() -> bool:
    """Whether it may fail to grow for a batch. Triton then answers that batch itself, and no lane gets to see it."""
    usage = shutil.disk_usage(SHARED_MEMORY)
    return usage.used > usage.free


def close_shared_memory(name: str) -> None:
    """Keep other users out of what is named so, followed by `-`: clients' images, which Triton lets them all read."""
    for segment in SHARED_MEMORY.glob(f"{name}-*"):
        with contextlib.suppress(FileNotFoundError):
            segment.chmod(0o600)
