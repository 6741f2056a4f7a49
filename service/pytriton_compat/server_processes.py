"""tritonserver's processes: what they are started with, whether they live, and their end.

It must not know what they serve.
"""

import contextlib
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import psutil

from service.errors import StartupFault

_POLL_SECONDS = 0.05
_END_SECONDS = 5.0  # of a process that has been told to end
_HEAPS = {
    # By default each thread of tritonserver gets a heap of its own, which stays as large as it has ever been.
    "MALLOC_ARENA_MAX": "2",
    # By default glibc raises this when the first large body is freed: all that are smaller then lie in the heaps,
    # between what stays, and are not given back. `clean_memory.c` counts on this value, too.
    "MALLOC_MMAP_THRESHOLD_": "131072",
}
# For where setup has found no C compiler: Triton parses JSON by recursion, and copies a whole body of the content type
# that curl sends by default onto the stack, twice, before it looks at a token: the usual 8 MB end it with a photograph
# of 4. Only what is used takes memory, and stays; this is enough for twice what the documented proxy lets through.
_STACK_BYTES = 2**27
# Each connection takes one, also that of a client that says nothing, and without one left tritonserver answers nobody.
# Most systems start a process with a limit of 1,024, and let it raise that.
_OPEN_FILES = 2**16
# With half as many its start never ends, and it says nothing.
_LEAST_OPEN_FILES = 128


def environment(
    preload: Path | None, libpython: Path, libraries: Path, largest_tensor: int, largest_request: int
) -> dict[str, str]:
    """The variables to start a server with: this process's own, and what the server needs.

    Args:
        preload: the library that its processes load before all others, but for those that the operator names.
        libpython: the folder where they look for libraries first.
        libraries: the folder where they look for them last.
        largest_tensor: the bytes that the numbers of one input may have, for `no_huge_tensors.c` and `no_deep_json.c`.
        largest_request: the bytes that a request over HTTP may take, for `no_large_bodies.c`.
    """
    own = {**_HEAPS, "PATH": os.defpath, **os.environ}
    return {
        **own,
        # A stub takes the Python that it finds first for its own.
        "PATH": f"{sys.exec_prefix}/bin:{own['PATH']}",
        # Here the operator's come first: of two that hand out memory, only the first one's is then used.
        "LD_PRELOAD": _joined(own.get("LD_PRELOAD"), preload),
        "LD_LIBRARY_PATH": _joined(libpython, own.get("LD_LIBRARY_PATH"), libraries),
        # Models run in this process. By itself a server takes memory of every GPU that it sees, also of those that are
        # none of this service's, and locks 256 MiB of the host's for them.
        "CUDA_VISIBLE_DEVICES": "",
        "EMBED_LARGEST_TENSOR": str(largest_tensor),
        "EMBED_LARGEST_REQUEST": str(largest_request),
    }


def _joined(*paths: Path | str | None) -> str:
    return ":".join(str(path) for path in paths if path)


def start(command: Sequence[str], variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a server with the stack and the open files that it needs; it is told to end when the calling thread does.

    It has the limits from this process, which gets them, too: what Python does in a child before the command could wait
    there for ever, for a lock that another thread had when the process was copied.

    Raises:
        StartupFault: it would get too few open files.
    """
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if within(most, _LEAST_OPEN_FILES) < _LEAST_OPEN_FILES:
        raise StartupFault(f"a process may open {most} files here, and Triton needs {_LEAST_OPEN_FILES} (ulimit -Hn)")
    for limit, size in ((resource.RLIMIT_STACK, _STACK_BYTES), (resource.RLIMIT_NOFILE, max(_OPEN_FILES, now))):
        _, most = resource.getrlimit(limit)
        resource.setrlimit(limit, (within(most, size), most))
    # Where the system lacks it, its stubs end the server, a second later.
    mortal = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
    return subprocess.Popen(
        [*mortal, *command],
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # As Python has them, which ignores SIGXFSZ: where shared memory may not grow, only that batch fails.
        restore_signals=False,
        # Ctrl-C in a terminal signals the whole process group, and the server would end with requests in flight while
        # this process still wants to drain.
        start_new_session=True,
    )


def limit_files(processes: Collection[psutil.Process], size: int) -> None:
    """Let each write files of so many bytes at most, or of all that is allowed."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):  # whoever watches it will tell
            _, most = process.rlimit(psutil.RLIMIT_FSIZE)  # an ordinary user cannot raise it
            least = within(most, size)
            process.rlimit(psutil.RLIMIT_FSIZE, (least, least))


def within(most: int, size: int) -> int:
    """The size, or the most that the system allows."""
    return size if most == resource.RLIM_INFINITY else min(size, most)


def process_tree(pid: int) -> list[psutil.Process]:
    """The process and all below it; nothing where it is gone."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def process_group(leader: int) -> list[psutil.Process]:
    """All processes of a group, also those whose parent has ended."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            if os.getpgid(process.pid) == leader:
                found.append(process)
    return found


def has_died(process: psutil.Process) -> bool:
    """Whether it runs no more."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE) or not process.is_running()
    except psutil.NoSuchProcess:
        return True


def is_gone(process: psutil.Process) -> bool:
    """Whether it has died with all its threads: as long as one of them is ending, its ports are taken."""
    try:
        return has_died(process) and len(os.listdir(f"/proc/{process.pid}/task")) <= 1
    except OSError:
        return True


def listens(processes: Collection[psutil.Process], port: int) -> bool:
    """Whether one of them is who listens at this TCP port, or that is not for us to know."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            try:
                connections = process.net_connections("tcp")
            except psutil.AccessDenied:
                return True
            if any(each.status == psutil.CONN_LISTEN and each.laddr.port == port for each in connections):
                return True
    return False


def end(processes: Collection[psutil.Process], were_told: bool) -> None:
    """Wait for processes that were told to end, kill those that do not or were not told, and see that they are gone."""
    _, alive = psutil.wait_procs(processes, timeout=_END_SECONDS if were_told else 0)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    # The next server listens on the same ports. Whoever inherits the dead may take a while to bury them.
    deadline = time.monotonic() + _END_SECONDS
    while not all(map(is_gone, alive)) and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    psutil.wait_procs(alive, timeout=0)  # as a container's process 1 it is for us to do so
