"""The row about more load than the service can bear: what it still answers, and how soon it is itself again."""

import asyncio
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np

from perf import images
from perf.bench import IN_FLIGHT, Bench
from perf.findings import Figure, Findings, NotMeasured, Table
from perf.in_process import BASE, SO400M
from perf.load.client import discounted
from perf.load.flood import Flood, FloodPart, Sent, send
from perf.load.protocols import Target, connect
from perf.service_under_test import Service

_TIMES_CAPACITY = 10
_FLOOD_SECONDS, _QUICK_FLOOD_SECONDS = 60.0, 3.0
# Its best is what it answers when a little more is offered than it can bear, for a third of the flood's time.
_TIMES_SATURATING, _SHARE_SATURATING = 1.5, 1 / 3
_PROTOCOL = "kserve-http"
# Until its lanes have filled and the first batches are done, which would be missing.
_SHARE_FILLING = 1 / 4
# So much work may be in the service, half of it in its lanes and half waiting; what is over it is turned away. A slow
# model gets more: with a batch of one or two there would be nothing to see.
_ROOM_SECONDS = 0.5
_LANES = 2
_LEAST_BATCH, _LARGEST_BATCH = 4, 60
# Twice what it takes to work off a full room.
_TIMES_ROOM = 2
# The generators need a moment to get their requests ready.
_BEGIN_SECONDS = 2.0
_RECOVERY_SECONDS = 1.0
_REQUESTS_ALONE = 5
_NOTE = (
    "The room for requests fits this model on this machine, and so does their timeout. Its best is that of the"
    f" same service when {_TIMES_SATURATING:g} times as many images are offered as one with the default bounds answers."
    " On a CPU the generators' cores are not the service's to use; discounted, images/s are those of the cores left."
)


def overload(bench: Bench) -> Findings:
    """base-224 on a CPU, so400m-384 on CUDA: slow enough for a generator on the same machine to flood it."""
    checkpoint = SO400M if bench.device.type == "cuda" else BASE
    with bench.service(*checkpoint.arguments) as default:
        # A shared machine may be half as fast again at one moment, and the bounds are for a whole run.
        bounds = _Bounds.for_rate(statistics.median(_usual(bench, default) for _ in range(bench.rounds)))
        with bench.service(*checkpoint.arguments, *bounds.arguments) as bounded:
            rounds = bench.alternate("overload", {"": partial(_round, bench, default, bounded)})[""]
    seen = {name: [of_round[name] for of_round in rounds] for name in rounds[0]}
    points = {name: {"median (range)": samples} for name, samples in seen.items()}
    title = f"{checkpoint.name} on {bench.device.type}, {' '.join(bounds.arguments)}"
    return Findings(_figures(seen, bounds.queue_timeout_ms), [Table(title, "figure", points)], [_NOTE])


def _figures(seen: dict[str, list[float]], timeout_ms: int) -> list[Figure]:
    offered, refused = (statistics.median(seen[name]) for name in ("offered / usual", "share turned away"))
    note = f"offered {offered:.3g} times what the default bounds answer; {refused:.0%} turned away"
    rate, discounted = seen["images/s in the flood"], seen["images/s in the flood, discounted"]
    best, best_discounted = seen["best images/s"], seen["best images/s, discounted"]
    late, early = seen["memory MB, later half"], seen["memory MB, earlier half"]
    before = seen["ms alone, before"]
    return [
        Figure(
            "images/s in the flood / its best, generators' CPU time discounted",
            "ratio",
            discounted,
            best_discounted,
            at_least=0.9,
            note=note,
        ),
        Figure("images/s in the flood / its best, with the generators", "ratio", rate, best),
        Figure("images/s in the flood / with the default bounds, 60 in flight", "ratio", rate, seen["usual images/s"]),
        Figure("p99 of accepted requests", "value", seen["ms accepted, p99"], unit="ms", at_most=timeout_ms),
        Figure("latency one second after / before", "ratio", seen["ms alone, after"], before, at_most=1.5),
        Figure("peak memory, later half of the flood / earlier half", "ratio", late, early, at_most=1.05),
    ]


@dataclass(frozen=True)
class _Bounds:
    """Settings under which a service takes no more than it can work off soon."""

    max_batch_size: int
    max_queue_size: int
    queue_timeout_ms: int

    @classmethod
    def for_rate(cls, images_per_second: float) -> "_Bounds":
        """Those of a service that answers so many images a second."""
        half = max(images_per_second * _ROOM_SECONDS / 2, _LANES * _LEAST_BATCH)
        timeout_ms = round(1000 * _TIMES_ROOM * 2 * half / images_per_second)
        return cls(min(_LARGEST_BATCH, round(half / _LANES)), round(half), timeout_ms)

    @property
    def arguments(self) -> tuple[str, ...]:
        """How the service is told."""
        settings = {"lanes": _LANES, **asdict(self)}
        return tuple(text for key, value in settings.items() for text in (f"--{key.replace('_', '-')}", str(value)))


def _usual(bench: Bench, service: Service) -> float:
    """Images a second of a closed loop that is never turned away."""
    slow = bench.device.type == "cpu"
    return bench.load(service.target(_PROTOCOL), IN_FLIGHT, slow=slow).images_per_second


def _round(bench: Bench, default: Service, bounded: Service) -> dict[str, float]:
    usual, target = _usual(bench, default), bounded.target(_PROTOCOL)
    seconds = _QUICK_FLOOD_SECONDS if bench.quick else _FLOOD_SECONDS
    saturating, parts = _start(bench, target, _TIMES_SATURATING * usual, seconds * _SHARE_SATURATING)
    best = _ends(list(parts), saturating, bench.shared_cores)
    before = asyncio.run(_milliseconds_alone(target))
    flood, parts = _start(bench, target, _TIMES_CAPACITY * usual, seconds)
    memory = _memory_mb_until(flood.begin + seconds, bounded, seconds / 60)
    time.sleep(_RECOVERY_SECONDS)
    after = asyncio.run(_milliseconds_alone(target))
    ends = _ends(list(parts), flood, bench.shared_cores)
    return {
        "usual images/s": usual,
        "best images/s": best["images/s in the flood"],
        "best images/s, discounted": best["images/s in the flood, discounted"],
        **ends,
        "offered / usual": ends["offered images/s"] / usual,
        "ms alone, before": before,
        "ms alone, after": after,
        "memory MB, earlier half": max(memory[: len(memory) // 2]),
        "memory MB, later half": max(memory[len(memory) // 2 :]),
    }


def _start(bench: Bench, target: Target, rate: float, seconds: float) -> tuple[Flood, Iterator[FloodPart]]:
    flood = Flood(rate, seconds, time.monotonic() + _BEGIN_SECONDS)
    return flood, bench.own_client.flood(target, flood)


def _memory_mb_until(end: float, service: Service, pause: float) -> list[float]:
    memory = []
    while time.monotonic() < end:
        memory.append(service.vitals().total_mb)
        time.sleep(max(0.0, min(pause, end - time.monotonic())))
    return memory


async def _milliseconds_alone(target: Target) -> float:
    """Median latency of a few requests, one at a time.

    Raises:
        NotMeasured: one of them was not answered.
    """
    async with connect(target) as connection:
        requests = [await send(connection, connection.prepare(jpeg)) for jpeg in images.workload(_REQUESTS_ALONE)]
    if errors := [each.error for each in requests if each.error]:
        raise NotMeasured(f"a request alone failed: {errors[0]}")
    return 1000 * statistics.median(each.ended - each.sent for each in requests)


def _ends(parts: Sequence[FloodPart], flood: Flood, cores: float) -> dict[str, float]:
    """How the requests of a flood ended; `cores` are those that its generators share with the service.

    Raises:
        NotMeasured: some were neither answered nor turned away, or none were answered.
    """
    requests = [each for part in parts for each in part.requests]
    answered = [each for each in requests if not each.error]
    turned_away = [each for each in requests if each.is_turned_away]
    if failed := [each.error for each in requests if each.error and not each.is_turned_away]:
        raise NotMeasured(f"{len(failed)} of {len(requests)} requests failed, one of them with: {failed[0]}")
    if not answered:
        raise NotMeasured("none of the requests was answered")
    filling, end = flood.seconds * _SHARE_FILLING, flood.begin + flood.seconds
    rate = sum(flood.begin + filling <= each.ended < end for each in answered) / (flood.seconds - filling)
    generators = sum(part.cpu_seconds for part in parts) / flood.seconds
    return {
        "images/s in the flood": rate,
        "images/s in the flood, discounted": discounted(rate, generators, cores),
        "generators' cores": generators,
        "offered images/s": len(requests) / flood.seconds,
        "share turned away": len(turned_away) / len(requests),
        "ms accepted, p99": _p99_ms(answered),
        "ms turned away, p99": _p99_ms(turned_away) if turned_away else 0.0,
    }


def _p99_ms(requests: Sequence[Sent]) -> float:
    return float(np.percentile([each.ended - each.sent for each in requests], 99)) * 1000
