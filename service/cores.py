"""The CPU's cores, shared out among the batches that use them at the same time.

It must not know what they are used for.
"""

import contextlib
import os
import threading
from collections.abc import Iterator


class Cores:
    """So many cores, in equal shares. Safe to use from several threads.

    Two batches that decode or encode on all cores at once are slower than two on half of them each: the threads of an
    operator wait for the last of them, which waits for its core. Alone, a batch has all cores and the least latency.
    """

    def __init__(self, count: int = 0) -> None:
        """`count` cores; 0 is as many as this process may run on."""
        self.count = count or len(os.sched_getaffinity(0))
        self._users = 0
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def share(self) -> Iterator[int]:
        """The number of threads to use until the end of the block, at least one."""
        with self._lock:
            self._users += 1
            threads = max(1, self.count // self._users)
        try:
            yield threads
        finally:
            with self._lock:
                self._users -= 1
