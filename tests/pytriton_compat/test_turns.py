from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from service.pytriton_compat.turns import Turns


@dataclass(eq=False)
class FakeLane:
    name: str
    model: str
    batches: int = 3
    in_the_works: int = 0


WORKS, STANDS_STILL, HAS_A_LONG_BATCH = (1, 0), (0, 0), (0, 1)


@pytest.mark.parametrize(
    ("first", "second", "seconds", "canary_seconds", "passed_over"),
    [
        (STANDS_STILL, WORKS, 6, 2, "first"),
        (WORKS, WORKS, 6, 2, None),
        (HAS_A_LONG_BATCH, WORKS, 6, 2, None),
        (STANDS_STILL, STANDS_STILL, 6, 2, None),
        (STANDS_STILL, WORKS, 0.1, 2, None),
        (STANDS_STILL, WORKS, 5, 1, None),
        (STANDS_STILL, WORKS, 20, 8, None),
        (STANDS_STILL, WORKS, 24, 8, "first"),
    ],
)
def test_a_lane_that_gets_no_batches_while_others_do_is_found(
    monkeypatch: pytest.MonkeyPatch,
    first: tuple[int, int],
    second: tuple[int, int],
    seconds: float,
    canary_seconds: float,
    passed_over: str | None,
) -> None:
    """That of another model, which has none, is no matter."""
    lanes: list[Any] = [FakeLane("first", "a"), FakeLane("second", "a"), FakeLane("other", "b")]
    clock = 0.0
    monkeypatch.setattr("service.pytriton_compat.turns.time", SimpleNamespace(monotonic=lambda: clock))
    watched = Turns(lanes)
    for _ in range(12):
        found = watched.passed_over(canary_seconds)
        for lane, (batches, in_the_works) in zip(lanes, (first, second, STANDS_STILL), strict=True):
            lane.batches, lane.in_the_works = lane.batches + batches, in_the_works
        clock += seconds / 10
    assert (found and found.name) == passed_over


@pytest.mark.parametrize(("looks", "seconds", "is_found"), [(12, 11, True), (11, 11, False), (12, 9, False)])
def test_several_others_have_as_many_batches_each_and_keep_canaries_away_for_longer(
    monkeypatch: pytest.MonkeyPatch, looks: int, seconds: float, is_found: bool
) -> None:
    lanes: list[Any] = [FakeLane(name, "a") for name in ("still", "second", "third", "fourth")]
    clock = 0.0
    monkeypatch.setattr("service.pytriton_compat.turns.time", SimpleNamespace(monotonic=lambda: clock))
    watched = Turns(lanes)
    for look in range(looks):
        clock = look * seconds / (looks - 1)
        found = watched.passed_over(2)
        assert (found is lanes[0]) == (is_found and look == looks - 1)
        for lane in lanes[1:]:
            lane.batches += 1
