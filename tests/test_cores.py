"""Cores are shared out among those who use them at the same time."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor, TimeoutError
from contextlib import ExitStack
from pathlib import Path

import pytest

from service.cores import Cores


@pytest.mark.parametrize(
    ("count", "shares"), [(8, [8, 4, 2, 2, 1, 1, 1, 1]), (5, [5, 2, 1, 1, 1]), (2, [2, 1]), (1, [1])]
)
def test_each_newcomer_takes_its_share_and_gives_it_back(count: int, shares: list[int]) -> None:
    cores = Cores(count)
    assert cores.shares(99) == sorted(set(shares), reverse=True)
    assert cores.shares(1) == [count]
    for _ in range(2):
        with ExitStack() as users:
            assert [users.enter_context(cores.share()) for _ in shares] == shares
    with pytest.raises(RuntimeError), cores.share():
        raise RuntimeError
    with cores.share() as alone:
        assert alone == count


def test_one_user_more_than_cores_waits_for_the_first_that_is_free() -> None:
    cores, waits = Cores(2), threading.Event()

    def use() -> int:
        waits.set()
        with cores.share() as threads:
            return threads

    with ThreadPoolExecutor(1) as users, cores.share():
        with cores.share():
            third = users.submit(use)
            assert waits.wait(60)
            with pytest.raises(TimeoutError):
                third.result(0.2)
        assert third.result(60) == 1


@pytest.mark.usefixtures("restless")
def test_never_more_users_than_cores_and_no_core_stays_taken() -> None:
    cores, start, inside = Cores(4), threading.Barrier(8), list[int]()

    def most_inside(_: int) -> int:
        start.wait()
        most = 0
        for _ in range(500):
            with cores.share() as threads:
                inside.append(threads)
                most = max(most, len(inside))
                assert inside.pop() in {4, 2, 1}
        return most

    with ThreadPoolExecutor(8) as users:
        assert max(users.map(most_inside, range(8))) <= 4
    with cores.share() as alone:
        assert alone == 4


def test_threads_are_there_before_the_system_has_none_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is missing at the first large batch would fail it, and each one after it."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    threads, together = Cores(4).threads("work"), threading.Barrier(4, timeout=60)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    work = [threads.submit(lambda: (together.wait(), threading.current_thread().name)[1]) for _ in range(4)]
    assert sorted(each.result() for each in work) == [f"work_{number}" for number in range(4)]
    with pytest.raises(RuntimeError, match="can't start new thread"):
        Cores(4).threads("work")


@pytest.mark.parametrize(
    ("memberships", "files", "count"),
    [
        ("0::/", {"cpu.max": "max 100000"}, 8),
        ("0::/", {"cpu.max": "250000 100000"}, 2),
        ("0::/", {"cpu.max": "50000 100000"}, 1),
        ("0::/", {"cpu.max": "1600000 100000"}, 8),
        ("0::/a.slice/b.service", {"a.slice/cpu.max": "300000 100000", "a.slice/b.service/cpu.max": "max 100000"}, 3),
        ("0::/outside/the/container", {"cpu.max": "200000 100000"}, 2),
        ("5:cpu,cpuacct:/a\n0::/", {"cpu/a/cpu.cfs_quota_us": "200000", "cpu/a/cpu.cfs_period_us": "50000"}, 4),
        ("5:cpu,cpuacct:/a\n0::/", {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "50000"}, 8),
        ("5:cpuset:/", {"cpu.max": "200000 100000"}, 8),
        (None, {}, 8),
    ],
)
def test_without_a_count_they_are_those_this_process_may_run_on_and_has_time_of(
    memberships: str | None, files: dict[str, str], count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr("service.cores._MEMBERSHIPS", tmp_path / "memberships")
    monkeypatch.setattr("service.cores._CONTROL_GROUPS", tmp_path / "groups")
    if memberships:
        (tmp_path / "memberships").write_text(f"{memberships}\n")
    for name, content in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    assert Cores().count == Cores(0).count == count and Cores(7).count == 7
