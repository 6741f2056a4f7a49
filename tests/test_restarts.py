"""So many within so many seconds, and no more until the first of them is long ago."""

from types import SimpleNamespace

import pytest

from service.restarts import Restarts


def test_the_next_one_has_to_wait_until_the_first_is_long_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter((0, 4, 9.9, 10, 13.9, 14, 19.9))
    monkeypatch.setattr("service.restarts.time", SimpleNamespace(monotonic=lambda: next(clock)))
    restarts = Restarts(2, 10)
    assert [restarts.allow() for _ in range(7)] == [True, True, False, True, False, True, False]
    assert restarts.count == 4
