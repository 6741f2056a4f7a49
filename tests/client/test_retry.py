"""How long one image is tried."""

import asyncio
from collections.abc import Sequence

import pytest

from service.client.retry import GaveUp, Patience, persist
from service.client.transport import Broken, TryAgain

PATIENCE = Patience(total=3600.0, broken=0.05, first_pause=0.02, longest_pause=0.02)


def _persist(answers: Sequence[TryAgain]) -> int:
    """How many requests it took to an answer that is none of these."""
    asked = 0

    async def ask() -> int:
        nonlocal asked
        asked += 1
        if asked <= len(answers):
            raise answers[asked - 1]
        return asked

    async def run() -> int:
        return await persist(ask, PATIENCE, asyncio.Event())

    return asyncio.run(run())


def test_a_failure_of_the_service_is_not_tried_for_long_unless_it_goes_away_meanwhile() -> None:
    with pytest.raises(GaveUp, match="500"):
        _persist([Broken("500")] * 100)
    assert _persist([Broken("500"), *[TryAgain("503")] * 9, Broken("500")]) == 12
