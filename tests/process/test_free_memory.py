"""Memory goes back to the system when nothing happens."""

from types import SimpleNamespace

import psutil
import pytest

from service.process.free_memory import FreeMemory


def test_what_was_freed_below_something_that_is_still_used_goes_back() -> None:
    pieces = [bytearray(100_000) for _ in range(2_000)]
    used = pieces.pop()
    pieces.clear()
    before = psutil.Process().memory_info().rss
    free = FreeMemory(lambda: 0, lambda: False)
    free.look()
    assert psutil.Process().memory_info().rss > before - 10**7  # only the second look sees that nothing happens
    free.look()
    assert psutil.Process().memory_info().rss < before - 10**8
    assert not any(used)


def test_it_is_kept_while_batches_come_and_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now, given_back, batches = [0.0], list[float](), iter([1, 2, 3, 3, 3, 4, 4, 4, 4])
    monkeypatch.setattr("service.process.free_memory.time", SimpleNamespace(monotonic=lambda: now[0]))
    free = FreeMemory(lambda: next(batches), lambda: now[0] == 51)
    monkeypatch.setattr(free, "_malloc_trim", lambda _: given_back.append(now[0]))
    for now[0] in (0, 1, 2, 3, 4, 50, 51, 52, 53):
        free.look()
    assert given_back == [3, 52]
