"""Good and hostile requests in turn, in waves from none to hundreds in flight, and the account of how each ended.

Comes in: a service's targets. Goes out: counts that add up, and the latencies of good requests.
"""

import asyncio
import random
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from perf.load.cases import Case, Outcome, Photographs, cases
from perf.load.protocols import Target
from perf.load.wire import Wire, connect_both

# Seconds and requests in flight: calm, busy, a burst, a pause; new connections each time around.
_WAVES = ((5, 2), (8, 16), (4, 240), (3, 0))


@dataclass
class Account:
    """How requests ended, by case.

    Attributes:
        sent: how many were sent.
        ended: how many had each outcome.
        wrong: how often what else came back, by message.
        latencies: seconds of the good requests that were answered, since they were last taken.
    """

    sent: Counter[str] = field(default_factory=Counter)
    ended: dict[str, Counter[Outcome]] = field(default_factory=lambda: defaultdict(Counter))
    wrong: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)

    def total(self, outcome: Outcome) -> int:
        """Requests of all cases with this outcome."""
        return sum(ended[outcome] for ended in self.ended.values())

    @property
    def unaccounted(self) -> int:
        """Requests sent that had none of the outcomes that are right."""
        return self.sent.total() - sum(ended.total() for ended in self.ended.values())

    def take_latencies(self) -> list[float]:
        """The latencies since the last call."""
        taken, self.latencies = self.latencies, []
        return taken


class MixedLoad:
    """The load, on a service that was left alone before."""

    def __init__(self, http: Target, grpc: Target) -> None:
        self.account = Account()
        self._targets = http, grpc
        self._cases = cases()
        self._shares = [case.share for case in self._cases]

    async def run(self, seconds: float) -> None:
        """Send for so long, and wait for the last answers.

        Raises:
            WrongAnswer: the service does not even embed the photographs one by one.
        """
        end = time.monotonic() + seconds
        async with connect_both(*self._targets) as wire:
            photographs = await Photographs.ask(wire)
        while time.monotonic() < end:
            async with connect_both(*self._targets) as wire:
                for wave_seconds, in_flight in _WAVES:
                    wave_end = min(end, time.monotonic() + wave_seconds)
                    slots = (self._slot(wire, photographs, wave_end) for _ in range(in_flight))
                    await asyncio.gather(*slots, asyncio.sleep(wave_end - time.monotonic()))

    async def _slot(self, wire: Wire, photographs: Photographs, end: float) -> None:
        while time.monotonic() < end:
            (case,) = random.choices(self._cases, self._shares)
            await self._send(case, wire, photographs)

    async def _send(self, case: Case, wire: Wire, photographs: Photographs) -> None:
        self.account.sent[case.name] += 1
        started = time.perf_counter()
        try:
            outcome = await case.send(wire, photographs)
        # Whatever befalls a request is the service's answer to the load.
        except Exception as error:
            self.account.wrong[f"{case.name}: {type(error).__name__}: {error}"[:200]] += 1
            return
        self.account.ended[case.name][outcome] += 1
        if case.is_timed and outcome is Outcome.ANSWERED:
            self.account.latencies.append(time.perf_counter() - started)
