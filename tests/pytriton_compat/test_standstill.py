"""A process with a batch in its hands does not outlive a standstill, and goes on whatever else keeps it."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.pytriton_compat.tritonserver import find_library

PRELOAD = find_library("preload")
pytestmark = pytest.mark.skipif(PRELOAD is None, reason="setup has found no C compiler")

STUB = f"""
import ctypes, os, signal, threading, time
libc, library = ctypes.CDLL(None), ctypes.CDLL({str(PRELOAD)!r})
library.standstill_watch()
pause = (ctypes.c_long * 2)(0, 300_000_000)
batches = (ctypes.c_long * 4)()
def say_that_it_is_well():
    library.nanosleep(pause, None)
def say_so_again_and_again():
    # Without Python's lock: what compares numbers here sleeps.
    say_that_it_is_well()
    numbers = (ctypes.c_long * 200)(*(list(pause) * 100))
    sort = (numbers, ctypes.c_size_t(100), ctypes.c_size_t(16), library.nanosleep)
    threading.Thread(target=libc.qsort, args=sort, daemon=True).start()
def send_a_batch():
    libc.sem_post(batches)
def take_a_batch():
    assert library.sem_wait(batches) == 0
def stand_still():
    os.kill(os.getpid(), signal.SIGSTOP)
def meanwhile(*steps):
    threading.Thread(target=lambda: [step() for step in steps], daemon=True).start()
def keep_pythons_lock():
    ctypes.PyDLL(None).usleep(3_500_000)
def wait():
    time.sleep(3.5)
"""


def _run(lines: Sequence[str]) -> int:
    """The exit code of a process, which is woken up a while after it has stopped."""
    command = [sys.executable, "-c", "\n".join(lines)]
    with subprocess.Popen(command) as stub:
        _, status = os.waitpid(stub.pid, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            threading.Timer(3.5, stub.send_signal, (signal.SIGCONT,)).start()
            _, status = os.waitpid(stub.pid, 0)
        stub.returncode = os.waitstatus_to_exitcode(status)
    return stub.returncode


WELL, TAKE = "say_so_again_and_again()", "send_a_batch(); take_a_batch()"


STUBS = {
    "with a batch": ([WELL, TAKE, "stand_still()"], -signal.SIGKILL),
    "only Python stands still": ([WELL, "keep_pythons_lock()", TAKE, "keep_pythons_lock()"], 0),
    "only who says so stands still": (["say_that_it_is_well()", TAKE, "time.sleep(10)"], -signal.SIGKILL),
    "who says so is not known": ([TAKE, "wait()"], 0),
    "without one": ([WELL, "meanwhile(wait, stand_still, wait, send_a_batch)", "take_a_batch()"], 0),
    "without one, only who says so": (["say_that_it_is_well()", "meanwhile(wait, send_a_batch)", "take_a_batch()"], 0),
    "when it has handed the answers over": (
        [WELL, TAKE, "meanwhile(wait, stand_still, wait, send_a_batch)", "take_a_batch()"], 0,
    ),
    "before it takes one": (
        [WELL, "send_a_batch()", "meanwhile(stand_still, wait)", "wait()", "take_a_batch()"], -signal.SIGKILL,
    ),
    "with the next batch": ([WELL, TAKE, TAKE, "stand_still()"], -signal.SIGKILL),
}  # fmt: skip


TRITONSERVER = f"""
import ctypes, threading, time
library = ctypes.CDLL({str(PRELOAD)!r}, use_errno=True)
def in_seconds(seconds):
    now = time.clock_gettime_ns(time.CLOCK_REALTIME) + seconds * 10**9
    return (ctypes.c_long * 2)(now // 10**9, now % 10**9)
answer, mutex = (ctypes.c_long * 4)(), (ctypes.c_long * 5)()
threading.Timer(1.5, ctypes.CDLL(None).sem_post, (answer,)).start()
assert library.sem_timedwait(answer, in_seconds(1)) == 0
threading.Timer(0.1, ctypes.CDLL(None).sem_post, (answer,)).start()
assert library.sem_timedwait(answer, in_seconds(-1)) == 0, "it has stood still"
assert ctypes.CDLL(None).pthread_mutex_lock(mutex) == 0
threading.Timer(1.5, ctypes.CDLL(None).pthread_mutex_unlock, (mutex,)).start()
assert library.pthread_mutex_timedlock(mutex, in_seconds(1)) == 0
"""


@pytest.fixture(scope="module")
def exit_codes() -> dict[str, int]:
    """Of all stubs and of a tritonserver, at the same time: they mostly sleep."""
    scripts = {"tritonserver": [TRITONSERVER], **{name: [STUB, *lines] for name, (lines, _) in STUBS.items()}}
    with ThreadPoolExecutor(len(scripts)) as threads:
        return dict(zip(scripts, threads.map(_run, scripts.values()), strict=True))


@pytest.mark.parametrize("name", STUBS)
def test_who_stands_still_with_a_batch_is_killed(name: str, exit_codes: dict[str, int]) -> None:
    assert exit_codes[name] == STUBS[name][1]


def test_tritonserver_waits_for_a_stub_for_longer_than_it_says(exit_codes: dict[str, int]) -> None:
    assert exit_codes["tritonserver"] == 0
