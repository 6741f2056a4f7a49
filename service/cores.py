"""The CPU's cores, shared out among the batches that use them at the same time.

It must not know what they are used for.
"""

import contextlib
import os
import threading
from collections.abc import Iterator


class Cores:
    """So many cores, in equal shares, to as many users as there are cores; others wait. Safe to share between threads.

    Two batches that decode or encode on all cores at once are slower than two on half of them each: the threads of an
    operator wait for the last of them, which waits for its core. Three on two cores, base-224, were 7 % slower than two
    and one that waits. Alone, a batch has all cores and the least latency.
    """

    def __init__(self, count: int = 0) -> None:
        """`count` cores; 0 is as many as this process may run on."""
        self.count = count or len(os.sched_getaffinity(0))
        self._users = 0
        self._change = threading.Condition()

    def shares(self, most: int) -> list[int]:
        """The numbers of threads that a user may get where there are up to `most`, each once, the largest first."""
        return sorted({self._share(users) for users in range(1, min(most, self.count) + 1)}, reverse=True)

    def _share(self, users: int) -> int:
        return self.count // users

    @contextlib.contextmanager
    def share(self) -> Iterator[int]:
        """Wait for a core; the number of threads to use until the end of the block, at least one."""
        with self._change:
            self._change.wait_for(lambda: self._users < self.count)
            self._users += 1
            threads = self._share(self._users)
        try:
            yield threads
        finally:
            with self._change:
                self._users -= 1
                self._change.notify()
