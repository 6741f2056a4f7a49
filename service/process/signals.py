"""The signals that end the service, and what they set.

It must not know how it ends.
"""

import signal
import threading


class Shutdown(threading.Event):
    """An event that a signal's handler may set: it runs in the main thread, also where that is within `wait` itself."""

    def __init__(self) -> None:
        """It is not set yet."""
        super().__init__()
        # An event's own lock cannot be taken twice by one thread, which would wait for itself for ever.
        self._cond = threading.Condition(threading.RLock())


def ending_signals() -> tuple[signal.Signals, ...]:
    """SIGTERM, SIGINT and SIGHUP, which is a terminal's end, unless the service was started to outlive that (nohup)."""
    outlives = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return (signal.SIGTERM, signal.SIGINT) if outlives else (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
