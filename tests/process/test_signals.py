import signal
import subprocess
import sys

import pytest

from service.process.signals import ending_signals

# A signal that its own process sends is handled before the next line.
SIGNALLED_AT_EACH_LINE_OF_A_WAIT = """
import faulthandler, signal, sys, threading
from service.process.signals import Shutdown

faulthandler.dump_traceback_later(30, exit=True)
shutdown, lines = Shutdown(), [0]
signal.signal(signal.SIGTERM, lambda *_: shutdown.set())

def trace(frame, event, _):
    if frame.f_code.co_filename == threading.__file__:
        lines[0] += event == "line"
        if lines[0] == line:
            signal.raise_signal(signal.SIGTERM)
        return trace

for line in range(1, 1000):
    shutdown.clear()
    lines[0] = 0
    sys.settrace(trace)
    shutdown.wait(0.001)
    sys.settrace(None)
    if lines[0] < line:
        break
    assert shutdown.is_set()
print(line)
"""


@pytest.mark.parametrize("disposition", [signal.SIG_IGN, signal.SIG_DFL])
def test_a_hangup_ends_the_service_unless_it_was_started_to_outlive_that(disposition: signal.Handlers) -> None:
    before = signal.signal(signal.SIGHUP, disposition)
    try:
        assert (signal.SIGHUP in ending_signals()) == (disposition is signal.SIG_DFL)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_that_comes_within_the_wait_for_it_does_not_wait_for_itself() -> None:
    command = [sys.executable, "-c", SIGNALLED_AT_EACH_LINE_OF_A_WAIT]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) > 10
