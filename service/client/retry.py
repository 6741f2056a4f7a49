"""One image, as often as it makes sense: exponential backoff with jitter, within limits of time.

Comes in: a request as a function. Goes out: its answer, or why there is none. It must not know what is asked for.

What is asked again: overload, broken and refused connections, and replicas that come and go. A service that says that
it has failed (500) is asked again too, but not for long: one whose process was killed answers so for some seconds, and
with the next replica nothing is lost. That a request is at fault (400) is final.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from service.client.transport import Broken, TryAgain

A = TypeVar("A")


@dataclass(frozen=True)
class Patience:
    """Seconds.

    Attributes:
        total: for one image, from its first request on.
        broken: for one image, from the first answer on that the service has failed. A service of which a part has died
            ends itself within 20 seconds.
        first_pause, longest_pause: between requests; they double, and are shortened at random by up to a half.
    """

    total: float
    broken: float = 30.0
    first_pause: float = 0.5
    longest_pause: float = 10.0


class GaveUp(Exception):
    """The limits are used up; `str(error)` is the last reason."""


class Interrupted(Exception):
    """Somebody wants an end, and the image has no answer yet."""


async def persist(ask: Callable[[], Awaitable[A]], patience: Patience, stop: asyncio.Event) -> A:
    """Ask until there is an answer.

    Raises:
        GaveUp: the limits are used up.
        Interrupted: `stop` is set, and no request is under way.
    """
    end, pause, broken_end = time.monotonic() + patience.total, patience.first_pause, float("inf")
    while not stop.is_set():
        try:
            return await ask()
        except TryAgain as reason:
            now = time.monotonic()
            broken_end = min(broken_end, now + patience.broken) if isinstance(reason, Broken) else float("inf")
            if now + pause > min(end, broken_end):
                raise GaveUp(str(reason)) from reason
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(stop.wait(), pause * random.uniform(0.5, 1))
        pause = min(2 * pause, patience.longest_pause)
    raise Interrupted
