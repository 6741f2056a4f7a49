"""A process with a batch in its hands does not outlive a standstill, and goes on whatever else keeps it."""

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.pytriton_compat.triton import find_library

PRELOAD = find_library("preload")
pytestmark = pytest.mark.skipif(PRELOAD is None, reason="setup has found no C compiler")

STUB = f"""
import ctypes, os, signal, threading, time
libc, library = ctypes.CDLL(None), ctypes.CDLL({str(PRELOAD)!r})
assert library.standstill_watch()
pause = (ctypes.c_long * 2)(0, 300_000_000)
def say_that_it_is_well():
    library.nanosleep(pause, None)
def say_so_again_and_again():
    # Without Python's lock: what compares numbers here sleeps.
    say_that_it_is_well()
    numbers = (ctypes.c_long * 200)(*(list(pause) * 100))
    sort = (numbers, ctypes.c_size_t(100), ctypes.c_size_t(16), library.nanosleep)
    threading.Thread(target=libc.qsort, args=sort, daemon=True).start()
def stand_still():
    os.kill(os.getpid(), signal.SIGSTOP)
def keep_pythons_lock():
    ctypes.PyDLL(None).usleep(1_500_000)
"""


def _run(*lines: str) -> int:
    """The exit code of a stub, which is woken up a while after it has stopped."""
    command = [sys.executable, "-c", "\n".join((STUB, *lines))]
    with subprocess.Popen(command) as stub:
        _, status = os.waitpid(stub.pid, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            threading.Timer(1.5, stub.send_signal, (signal.SIGCONT,)).start()
            _, status = os.waitpid(stub.pid, 0)
        stub.returncode = os.waitstatus_to_exitcode(status)
    return stub.returncode


WELL = "say_so_again_and_again()"


STUBS = {
    "with a batch": ([WELL, "library.standstill_begin()", "stand_still()"], -signal.SIGKILL),
    "only Python stands still": (
        [WELL, "keep_pythons_lock()", "library.standstill_begin()", "keep_pythons_lock()"], 0,
    ),
    "only who says so stands still": (
        ["say_that_it_is_well()", "library.standstill_begin()", "time.sleep(10)"], -signal.SIGKILL,
    ),
    "for no longer than a batch takes": (
        ["say_that_it_is_well()", "time.sleep(1.5)", "batch = library.standstill_begin()",
         "library.standstill_end(batch)", "time.sleep(1.5)"], 0,
    ),
    "who says so is not known": (["library.standstill_begin()", "time.sleep(1.5)"], 0),
    "without one": ([WELL, "library.standstill_end(library.standstill_begin())", "stand_still()"], 0),
    "with the next batch": (
        [WELL, "first = library.standstill_begin()", "library.standstill_begin()", "library.standstill_end(first)",
         "stand_still()"], -signal.SIGKILL,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def exit_codes() -> dict[str, int]:
    """Of all stubs, at the same time: they mostly sleep."""
    with ThreadPoolExecutor(len(STUBS)) as threads:
        return dict(zip(STUBS, threads.map(lambda stub: _run(*stub[0]), STUBS.values()), strict=True))


@pytest.mark.parametrize("name", STUBS)
def test_who_stands_still_with_a_batch_is_killed(name: str, exit_codes: dict[str, int]) -> None:
    assert exit_codes[name] == STUBS[name][1]
