"""How often something may be started anew before that is no help any more.

It must not know what is started.
"""

import time
from collections import deque


class Restarts:
    """So many within so many seconds.

    Attributes:
        count: those allowed so far.
    """

    def __init__(self, most: int, seconds: float) -> None:
        self.count = 0
        self._seconds = seconds
        self._last: deque[float] = deque(maxlen=most)

    def allow(self) -> bool:
        """Whether there may be another one now; it is then counted."""
        now = time.monotonic()
        if len(self._last) == self._last.maxlen and now - self._last[0] < self._seconds:
            return False
        self._last.append(now)
        self.count += 1
        return True
