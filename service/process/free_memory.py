"""Memory that this process has freed goes back to the system.

glibc keeps what is freed between pieces that are still used: after a burst of large images some hundreds of megabytes.
It must not know what the memory was for.
"""

import ctypes
import math
import time
from collections.abc import Callable

# What is given back costs to be taken anew, so not between any two images.
_PAUSE_SECONDS = 10.0


class FreeMemory:
    """Gives it back now and then, at moments in which nothing happens."""

    def __init__(self, batches: Callable[[], int], is_working: Callable[[], bool]) -> None:
        """Nothing happens while `batches` returns the same number and none of them is in the works."""
        self._batches = batches
        self._is_working = is_working
        self._before = -1
        self._next_at = -math.inf
        self._malloc_trim = ctypes.CDLL(None).malloc_trim

    def look(self) -> None:
        """Do it if it is time."""
        before, self._before = self._before, self._batches()
        is_idle = self._before == before and not self._is_working()
        if is_idle and time.monotonic() > self._next_at:
            self._malloc_trim(ctypes.c_size_t(0))
            self._next_at = time.monotonic() + _PAUSE_SECONDS
