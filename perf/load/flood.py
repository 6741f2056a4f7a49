"""An open loop: so many requests a second, whatever becomes of those before.

Comes in: a target and a rate. Goes out: when each request was sent, how long it took, how it ended, and what sending
them cost.
"""

import asyncio
import itertools
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

from perf import images
from perf.load.protocols import Connection, Target, connect

# How a target says over HTTP that it has no room for a request. Over gRPC a connection that fails reads the same.
_TURNED_AWAY = "HTTP 503"


@dataclass(frozen=True)
class Flood:
    """An open loop.

    Attributes:
        rate: requests a second.
        seconds: how long they are sent.
        begin: when, by `time.monotonic()`, which all processes of a machine share.
    """

    rate: float
    seconds: float
    begin: float

    def part(self, index: int, count: int) -> "Flood":
        """The share of one of `count` generators, whose requests fall between those of the others."""
        return Flood(self.rate / count, self.seconds, self.begin + index / self.rate)


class Sent(NamedTuple):
    """One request: when it was sent and when its answer came, by `time.monotonic()`, and the error if it was none."""

    sent: float
    ended: float
    error: str

    @property
    def is_turned_away(self) -> bool:
        """Whether the target had no room for it."""
        return self.error.startswith(_TURNED_AWAY)


class FloodPart(NamedTuple):
    """One generator's part of a flood: its requests, and the CPU time that they took it, in seconds."""

    requests: list[Sent]
    cpu_seconds: float


def send_part(target: Target, flood: Flood) -> FloodPart:
    """One generator's part of a flood; ends when all that was sent has been answered."""
    return asyncio.run(_send_part(target, flood))


async def _send_part(target: Target, flood: Flood) -> FloodPart:
    async with connect(target) as connection:
        requests = itertools.cycle([connection.prepare(image) for image in images.workload()])
        under_way, cpu = [], time.process_time()
        for number in range(round(flood.rate * flood.seconds)):
            await asyncio.sleep(flood.begin + number / flood.rate - time.monotonic())
            # A generator that is too slow sends fewer, not for longer.
            if time.monotonic() > flood.begin + flood.seconds:
                break
            under_way.append(asyncio.create_task(send(connection, next(requests))))
        ended = await asyncio.gather(*under_way)
        return FloodPart(ended, time.process_time() - cpu)


async def send(connection: Connection, request: Any) -> Sent:
    """Send one request, whatever becomes of it."""
    sent, error = time.monotonic(), ""
    try:
        await connection.send(request)
    # Whatever befalls a request is the target's answer to it.
    except Exception as failure:
        error = str(failure)[:200] or type(failure).__name__
    return Sent(sent, time.monotonic(), error)
