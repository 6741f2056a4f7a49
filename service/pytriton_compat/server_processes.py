"""tritonserver's processes: what they are started with, whether they live, and their end.

It must not know what they serve.
"""

import contextlib
import os
import resource
import time
from collections.abc import Collection, Iterator
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


@contextlib.contextmanager
def launch_conditions(preload: Path | None, libraries: Path) -> Iterator[None]:
    """Give the processes that are started meanwhile the heaps, the stack and the open files that a server needs.

    Args:
        preload: the library that they load before all others, but for those that the operator names.
        libraries: the folder where they look for libraries before they look elsewhere.

    Raises:
        StartupFault: they would get too few open files.
    """
    for name, value in _HEAPS.items():
        os.environ.setdefault(name, value)  # read by glibc at the start of a process, so not by this one
    os.environ.setdefault("PATH", os.defpath)  # PyTriton takes for granted that there is one
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if _within(most, _LEAST_OPEN_FILES) < _LEAST_OPEN_FILES:
        raise StartupFault(f"a process may open {most} files here, and Triton needs {_LEAST_OPEN_FILES} (ulimit -Hn)")
    stack, files = _limit(resource.RLIMIT_STACK, _STACK_BYTES), _limit(resource.RLIMIT_NOFILE, max(_OPEN_FILES, now))
    with stack, files, _linker_paths(preload, libraries):
        yield


@contextlib.contextmanager
def _linker_paths(preload: Path | None, libraries: Path) -> Iterator[None]:
    before = {name: os.environ.get(name, "") for name in ("LD_PRELOAD", "LD_LIBRARY_PATH")}
    # Here the operator's come first: of two that hand out memory, only the first one's is then used.
    os.environ["LD_PRELOAD"] = f"{before['LD_PRELOAD']}:{preload or ''}".strip(":")
    os.environ["LD_LIBRARY_PATH"] = f"{libraries}:{before['LD_LIBRARY_PATH']}".strip(":")
    try:
        yield
    finally:
        os.environ.update(before)


@contextlib.contextmanager
def _limit(resource_number: int, size: int) -> Iterator[None]:
    """Give the processes that are started meanwhile so much of a resource (of stack: a thread), or all allowed."""
    before, most = resource.getrlimit(resource_number)
    resource.setrlimit(resource_number, (_within(most, size), most))
    try:
        yield
    finally:
        resource.setrlimit(resource_number, (before, most))


def limit_files(processes: Collection[psutil.Process], size: int) -> None:
    """Let each write files of so many bytes at most, or of all that is allowed."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):  # whoever watches it will tell
            _, most = process.rlimit(psutil.RLIMIT_FSIZE)  # an ordinary user cannot raise it
            least = _within(most, size)
            process.rlimit(psutil.RLIMIT_FSIZE, (least, least))


def _within(most: int, size: int) -> int:
    """The size, or the most that the system allows."""
    return size if most == resource.RLIM_INFINITY else min(size, most)


def process_tree(pid: int) -> list[psutil.Process]:
    """The process and all below it; nothing where it is gone."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


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
