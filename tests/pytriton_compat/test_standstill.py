"""A process that hands answers over does not outlive a standstill, and goes on whatever else keeps it."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from service.pytriton_compat.triton import find_library

PRELOAD = find_library("preload")
pytestmark = pytest.mark.skipif(PRELOAD is None, reason="setup has found no C compiler")

STUB = f"""
import ctypes, os, signal, threading
library = ctypes.CDLL({str(PRELOAD)!r})
assert library.standstill_watch()
threading.Thread(target=library.standstill_put_off, daemon=True).start()
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


@pytest.mark.parametrize(
    ("lines", "exit_code"),
    [
        (["library.standstill_hand_over()", "stand_still()"], -signal.SIGKILL),
        (["keep_pythons_lock()", "library.standstill_hand_over()", "keep_pythons_lock()"], 0),
        (["library.standstill_handed_over(library.standstill_hand_over())", "stand_still()"], 0),
        (
            ["first = library.standstill_hand_over()", "library.standstill_hand_over()",
             "library.standstill_handed_over(first)", "stand_still()"], -signal.SIGKILL,
        ),
    ],
    ids=["handing over", "only Python stands still", "handed over", "handing over the next"],
)  # fmt: skip
def test_who_stands_still_while_it_hands_over_is_killed(lines: list[str], exit_code: int) -> None:
    assert _run(*lines) == exit_code
