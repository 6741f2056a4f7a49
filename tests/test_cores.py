"""Cores are shared out among those who use them at the same time."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from service.cores import Cores


@pytest.mark.parametrize(
    ("count", "shares"), [(8, [8, 4, 2, 2, 1, 1, 1, 1, 1, 1]), (5, [5, 2, 1, 1]), (2, [2, 1, 1]), (1, [1, 1])]
)
def test_each_newcomer_takes_its_share_and_gives_it_back(count: int, shares: list[int]) -> None:
    cores = Cores(count)
    for _ in range(2):
        with ExitStack() as users:
            assert [users.enter_context(cores.share()) for _ in shares] == shares
    with cores.share() as first, cores.share() as second:
        assert (first, second) == tuple(shares[:2])
        with pytest.raises(RuntimeError), cores.share():
            raise RuntimeError
    with cores.share() as alone:
        assert alone == count


@pytest.mark.usefixtures("restless")
def test_no_core_stays_taken_after_many_users_at_once() -> None:
    cores, start = Cores(4), threading.Barrier(8)

    def use(_: int) -> set[int]:
        start.wait()
        shares = set()
        for _ in range(500):
            with cores.share() as threads:
                shares.add(threads)
        return shares

    with ThreadPoolExecutor(8) as users:
        assert set[int]().union(*users.map(use, range(8))) <= {4, 2, 1}
    with cores.share() as alone:
        assert alone == 4


def test_without_a_count_they_are_those_this_process_may_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 4, 5})
    assert Cores().count == 3 and Cores(0).count == 3 and Cores(7).count == 7
