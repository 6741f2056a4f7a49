"""How long one image is tried."""

import asyncio
from collections.abc import Coroutine, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from service.client.retry import GaveUp, Patience, persist
from service.client.transport import Broken, TryAgain

PATIENCE = Patience(total=3600.0, broken=0.05, first_pause=0.02, longest_pause=0.02)


def _persist(answers: Sequence[TryAgain], patience: Patience = PATIENCE) -> int:
    """How many requests it took to an answer that is none of these."""
    asked = 0

    async def ask() -> int:
        nonlocal asked
        asked += 1
        if asked <= len(answers):
            raise answers[asked - 1]
        return asked

    async def run() -> int:
        return await persist(ask, patience, asyncio.Event())

    return asyncio.run(run())


def test_a_failure_of_the_service_is_not_tried_for_long_unless_it_goes_away_meanwhile() -> None:
    with pytest.raises(GaveUp, match="500"):
        _persist([Broken("500")] * 100)
    assert _persist([Broken("500"), *[TryAgain("503")] * 9, Broken("500")]) == 12


def test_a_service_without_room_is_left_alone_for_longer_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """And all those who wait for it do not come back at the same moment."""
    pauses: list[float] = []

    async def note(waiting: Coroutine[Any, Any, object], seconds: float) -> None:
        waiting.close()
        pauses.append(seconds)
        raise TimeoutError

    monkeypatch.setattr(
        "service.client.retry.asyncio", SimpleNamespace(wait_for=note, TimeoutError=asyncio.TimeoutError)
    )
    assert _persist([TryAgain("503")] * 7, Patience(total=3600.0)) == 8
    shares = [pause / most for pause, most in zip(pauses, (0.5, 1, 2, 4, 8, 10, 10), strict=True)]
    assert all(0.5 <= share <= 1 for share in shares) and len(set(shares)) == 7
