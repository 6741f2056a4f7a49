"""The CPU's cores, shared out among the batches that use them at the same time.

It must not know what they are used for.
"""

import contextlib
import math
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_MEMBERSHIPS = Path("/proc/self/cgroup")
_CONTROL_GROUPS = Path("/sys/fs/cgroup")
_START_SECONDS = 60.0


class Cores:
    """So many cores, in equal shares, to as many users as there are cores; others wait. Safe to share between threads.

    Two batches that decode or encode on all cores at once are slower than two on half of them each: the threads of an
    operator wait for the last of them, which waits for its core. Three on two cores, base-224, were 7 % slower than two
    and one that waits. Alone, a batch has all cores and the least latency.
    """

    def __init__(self, count: int = 0) -> None:
        """`count` cores; 0 is as many as this process may run on, or as its control groups let it use at a time."""
        self.count = count or max(1, math.floor(min([len(os.sched_getaffinity(0)), *_quotas()])))
        self._users = 0
        self._change = threading.Condition()

    def shares(self, most: int) -> list[int]:
        """The numbers of threads that a user may get where there are up to `most`, each once, the largest first."""
        return sorted({self.count // users for users in range(1, min(most, self.count) + 1)}, reverse=True)

    def threads(self, name: str) -> ThreadPoolExecutor:
        """A thread for each core, all of them started: later the system may have none left.

        Raises:
            RuntimeError: it has none now.
        """
        threads, all_there = ThreadPoolExecutor(self.count, name), threading.Barrier(self.count, timeout=_START_SECONDS)
        for started in [threads.submit(all_there.wait) for _ in range(self.count)]:
            started.result()
        return threads

    @contextlib.contextmanager
    def share(self) -> Iterator[int]:
        """Wait for a core; the number of threads to use until the end of the block, at least one."""
        with self._change:
            self._change.wait_for(lambda: self._users < self.count)
            self._users += 1
            threads = self.count // self._users
        try:
            yield threads
        finally:
            with self._change:
                self._users -= 1
                self._change.notify()


def _quotas() -> Iterator[float]:
    """How many cores' time each control group that this process is in lets it have, as `docker run --cpus` says.

    More threads than that would all run for a moment, and then all stand still until the next tenth of a second.
    """
    with contextlib.suppress(OSError):
        for line in _MEMBERSHIPS.read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            if not controllers or "cpu" in controllers.split(","):
                top = _CONTROL_GROUPS / "cpu" if controllers else _CONTROL_GROUPS
                group = top / name.strip("/")
                # In a container the name may be that outside, and the container's own group is the top.
                yield from (_quota(folder) for folder in (group, *group.parents) if folder.is_relative_to(top))


def _quota(group: Path) -> float:
    with contextlib.suppress(OSError, ValueError):  # a ValueError: "max"
        quota, period = map(int, (group / "cpu.max").read_text().split())
        return quota / period
    with contextlib.suppress(OSError, ValueError):  # of version 1
        quota, period = (int((group / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return quota / period if quota > 0 else math.inf
    return math.inf
