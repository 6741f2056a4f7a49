"""The own load generator: a closed loop of N requests in flight, in processes of its own.

Comes in: a target and a load. Goes out: images/s, latencies, errors and what the generator itself cost.
"""

import asyncio
import itertools
import multiprocessing
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from perf import images
from perf.load.flood import Flood, FloodPart, send_part
from perf.load.protocols import Connection, Target, connect

_WARM_UP_SECONDS = 1.0
_PAUSE_AFTER_FAILURE_SECONDS = 0.1
# A slot's first answer starts its clock, so this is two whole turns.
_ANSWERS_A_SLOT = 3


@dataclass(frozen=True)
class Load:
    """A closed loop."""

    in_flight: int  # requests that are always under way
    seconds: float  # least length of the measurement; it goes on until each slot has made two whole turns
    repeated: float | None = None  # share of images that were sent before; None for the shipped photographs in turn
    seed: int = 1  # tells apart loads whose new images must differ


@dataclass(frozen=True)
class LoadResult:
    """What a load met, warm-up excluded.

    Attributes:
        images_per_second: answered images a second.
        p50_ms, p99_ms: latency in milliseconds.
        errors: how often each message came.
        client_cores: cores that the load generator kept busy.
    """

    images_per_second: float
    p50_ms: float
    p99_ms: float
    errors: dict[str, int]
    client_cores: float


def discounted(images_per_second: float, client_cores: float, cores: float) -> float:
    """The client's cores are not the service's to use: images/s of the cores that were left."""
    return images_per_second / (1 - client_cores / cores)


@dataclass(frozen=True)
class _Part:
    """What one process saw; latencies in seconds."""

    images_per_second: float
    latencies: list[float]
    errors: Counter[str]
    client_cores: float


class OwnClient:
    """Load from `processes` processes, which stay between measurements."""

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))

    def __enter__(self) -> "OwnClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def measure(self, target: Target, load: Load) -> LoadResult:
        """Put the load on the target; ends when it is measured, whatever the target answers."""
        count = min(self._processes, load.in_flight)
        shares = [load.in_flight // count + (index < load.in_flight % count) for index in range(count)]
        loads = [replace(load, in_flight=n, seed=load.seed * count + index) for index, n in enumerate(shares)]
        return _merge(list(self._pool.map(_measure, [target] * count, loads)))

    def flood(self, target: Target, flood: Flood) -> Iterator[FloodPart]:
        """Start an open loop at once; each process' part of it, as an iterator that waits for them."""
        floods = [flood.part(index, self._processes) for index in range(self._processes)]
        return self._pool.map(send_part, [target] * self._processes, floods)


def _merge(parts: list[_Part]) -> LoadResult:
    latencies = [latency for part in parts for latency in part.latencies]
    p50, p99 = np.percentile(latencies, (50, 99)) * 1000 if latencies else (float("nan"), float("nan"))
    return LoadResult(
        images_per_second=sum(part.images_per_second for part in parts),
        p50_ms=float(p50),
        p99_ms=float(p99),
        errors=dict(sum((part.errors for part in parts), Counter())),
        client_cores=sum(part.client_cores for part in parts),
    )


def _measure(target: Target, load: Load) -> _Part:
    """One process's part of a measurement."""

    async def run() -> _Part:
        async with connect(target) as connection:
            return await _ClosedLoop(connection, load).run()

    return asyncio.run(run())


def _requests(connection: Connection, load: Load) -> Iterator[Any]:
    if load.repeated is None:
        return itertools.cycle([connection.prepare(image) for image in images.workload()])
    return (connection.prepare(image) for image in images.repeating(load.repeated, load.seed))


class _ClosedLoop:
    """`in_flight` slots, each of which sends its next request when the last one is answered."""

    def __init__(self, connection: Connection, load: Load) -> None:
        self._connection = connection
        self._load = load
        self._requests = _requests(connection, load)
        self._warm_slots = 0
        self._phase = "warm-up"
        self._errors: Counter[str] = Counter()
        # For each slot, when its answers came, in seconds; and all latencies.
        self._answers: list[list[float]] = [[] for _ in range(load.in_flight)]
        self._latencies: list[float] = []

    async def run(self) -> _Part:
        slots = [asyncio.create_task(self._slot(answers)) for answers in self._answers]
        await asyncio.sleep(_WARM_UP_SECONDS)
        while self._warm_slots < self._load.in_flight:
            await asyncio.sleep(0.01)
        self._phase, wall, cpu = "measurement", time.perf_counter(), time.process_time()
        await asyncio.sleep(self._load.seconds)
        while not self._is_measured():
            await asyncio.sleep(0.01)
        self._phase, wall, cpu = "end", time.perf_counter() - wall, time.process_time() - cpu
        await asyncio.gather(*slots)
        return _Part(self._images_per_second(), self._latencies, self._errors, cpu / wall)

    async def _slot(self, answers: list[float]) -> None:
        for turn, request in enumerate(self._requests):
            await self._send(request, answers)
            self._warm_slots += not turn
            if self._phase == "end":
                return

    async def _send(self, request: Any, answers: list[float]) -> None:
        sent = time.perf_counter()
        try:
            await self._connection.send(request)
        # Whatever befalls a request is the target's answer to the load.
        except Exception as error:
            self._errors[f"{type(error).__name__}: {error}"[:200]] += 1
            await asyncio.sleep(_PAUSE_AFTER_FAILURE_SECONDS)
            return
        if self._phase == "measurement":
            answers.append(time.perf_counter())
            self._latencies.append(answers[-1] - sent)

    def _is_measured(self) -> bool:
        return bool(self._errors) or all(len(answers) >= _ANSWERS_A_SLOT for answers in self._answers)

    def _images_per_second(self) -> float:
        """Each slot is timed from one of its answers to a later one.

        Batches are answered all at once; a window of fixed length would count a batch more or less, which at two
        batches a window is a third. What all slots have waited is divided by their turns, and not a slot at a time:
        the mean of few waits' reciprocals is more than the reciprocal of their mean.
        """
        timed = [answers for answers in self._answers if len(answers) > 1]
        turns = sum(len(answers) - 1 for answers in timed)
        return len(timed) * turns / sum(answers[-1] - answers[0] for answers in timed) if timed else 0.0
