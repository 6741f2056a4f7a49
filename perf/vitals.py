"""What a tree of processes holds at a moment: memory, threads and file descriptors.

Comes in: the processes of a service, its own first. Goes out: sums over them.
"""

import contextlib
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

_ROLES = {"tritonserver": "tritonserver", "triton_python_backend_stub": "stubs"}
# Not what is mapped from files: the kernel can drop that, and how much of it counts here depends on who else maps it.
# Nor what they have touched of /dev/shm, whose files take all of their memory from when they grow.
_OWN_KB = re.compile(r"^Pss_Anon: +(\d+) kB$", re.MULTILINE)
_SHARED_MEMORY = re.compile(r"/dev/shm/\S+$", re.MULTILINE)


@dataclass(frozen=True)
class Vitals:
    """Of all processes together.

    Attributes:
        memory_mb: by role, what is not mapped from files; what processes share is counted once (PSS).
        shared_mb: the files in /dev/shm that they have mapped, touched or not.
        threads: threads.
        files: open file descriptors.
    """

    memory_mb: dict[str, float]
    shared_mb: float
    threads: int
    files: int

    @property
    def total_mb(self) -> float:
        """Memory of all roles, and what they share."""
        return sum(self.memory_mb.values()) + self.shared_mb


def vitals(processes: Sequence[psutil.Process]) -> Vitals:
    """Look at each of the processes.

    Raises:
        psutil.NoSuchProcess: one of them has ended.
    """
    memory = defaultdict[str, float](float)
    threads = files = 0
    for process in processes:
        with process.oneshot():
            memory[_ROLES.get(process.name(), "service")] += _memory_mb(process.pid)
            threads += process.num_threads()
            files += process.num_fds()
    return Vitals(dict(memory), _shared_mb(processes), threads, files)


def _memory_mb(pid: int) -> float:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError) as error:
        raise psutil.NoSuchProcess(pid) from error
    return sum(map(int, _OWN_KB.findall(text))) * 1024 / 1e6


def _shared_mb(processes: Sequence[psutil.Process]) -> float:
    """What the files take, not what they could: Triton makes them larger than it needs."""
    maps = (Path(f"/proc/{process.pid}/maps").read_text() for process in processes)
    paths = {path for text in maps for path in _SHARED_MEMORY.findall(text)}
    blocks = 0
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            blocks += os.stat(path).st_blocks
    return blocks * 512 / 1e6
