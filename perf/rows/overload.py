"""The row about more load than the service can bear: what it still answers, and how soon it is itself again."""

import asyncio
import statistics
import time
from collections.abc import Sequence
from functools import partial
from itertools import chain

import numpy as np

from perf import images
from perf.bench import Bench
from perf.in_process import BASE, SO400M
from perf.load.flood import Flood, Sent
from perf.load.protocols import Target, connect
from perf.rows.end_to_end import IN_FLIGHT
from perf.samples import Figure, Findings, NotMeasured, Table
from perf.service_under_test import Service

_TIMES_CAPACITY = 10
_FLOOD_SECONDS, _QUICK_FLOOD_SECONDS = 60.0, 3.0
_PROTOCOL = "kserve-http"
# So much work may be in the service, half of it in its lanes and half waiting; what is over it is turned away.
_ROOM_SECONDS = 0.5
_LANES = 2
_LARGEST_BATCH = 60
_TIMEOUT_MS = 1000
# The generators need a moment to get their requests ready.
_BEGIN_SECONDS = 2.0
_RECOVERY_SECONDS = 1.0
_REQUESTS_ALONE = 5
_NOTE = (
    "The room for requests fits this model on this machine: about half a second of its work. The best is that of a"
    " service without such bounds, in the same round."
)


def overload(bench: Bench) -> Findings:
    """base-224 on a CPU, so400m-384 on CUDA: slow enough for a generator on the same machine to flood it."""
    checkpoint = SO400M if bench.device.type == "cuda" else BASE
    with bench.service(*checkpoint.arguments) as roomy:
        bounds = _bounds(_best(bench, roomy))
        with bench.service(*checkpoint.arguments, *bounds) as bounded:
            rounds = bench.alternate("overload", {"": partial(_round, bench, roomy, bounded)})[""]
    seen = {name: [of_round[name] for of_round in rounds] for name in rounds[0]}
    points = {name: {"median (range)": samples} for name, samples in seen.items()}
    title = f"{checkpoint.name} on {bench.device.type}, {' '.join(bounds)}"
    return Findings(_figures(seen), [Table(title, "figure", points)], [_NOTE])


def _figures(seen: dict[str, list[float]]) -> list[Figure]:
    offered, refused = (statistics.median(seen[name]) for name in ("offered / best", "share turned away"))
    note = f"offered {offered:.3g} times the best; {refused:.0%} turned away"
    rate, best, before = seen["images/s in the flood"], seen["best images/s"], seen["ms alone, before"]
    late, early = seen["memory MB, later half"], seen["memory MB, earlier half"]
    return [
        Figure("images/s in the flood / best", "ratio", rate, best, at_least=0.9, note=note),
        Figure("p99 of accepted requests", "value", seen["ms accepted, p99"], unit="ms", at_most=_TIMEOUT_MS),
        Figure("latency one second after / before", "ratio", seen["ms alone, after"], before, at_most=1.5),
        Figure("peak memory, later half of the flood / earlier half", "ratio", late, early, at_most=1.05),
    ]


def _bounds(images_per_second: float) -> tuple[str, ...]:
    """Settings under which the service holds no more than `_ROOM_SECONDS` of its work."""
    half = images_per_second * _ROOM_SECONDS / 2
    settings = {
        "--lanes": _LANES,
        "--max-batch-size": min(_LARGEST_BATCH, max(1, round(half / _LANES))),
        "--max-queue-size": max(1, round(half)),
        "--queue-timeout-ms": _TIMEOUT_MS,
    }
    return tuple(str(part) for setting in settings.items() for part in setting)


def _best(bench: Bench, service: Service) -> float:
    slow = bench.device.type == "cpu"
    return bench.load(service.target(_PROTOCOL), IN_FLIGHT, slow=slow).images_per_second


def _round(bench: Bench, roomy: Service, bounded: Service) -> dict[str, float]:
    best, target = _best(bench, roomy), bounded.target(_PROTOCOL)
    seconds = _QUICK_FLOOD_SECONDS if bench.quick else _FLOOD_SECONDS
    before = asyncio.run(_milliseconds_alone(target))
    flood = Flood(_TIMES_CAPACITY * best, seconds, time.monotonic() + _BEGIN_SECONDS)
    parts = bench.own_client.flood(target, flood)
    memory, end = [], flood.begin + seconds
    while time.monotonic() < end:
        memory.append(bounded.memory_mb())
        time.sleep(max(0.0, min(seconds / 60, end - time.monotonic())))
    time.sleep(_RECOVERY_SECONDS)
    after = asyncio.run(_milliseconds_alone(target))
    return {
        "best images/s": best,
        **_ends(list(chain.from_iterable(parts)), flood, best),
        "ms alone, before": before,
        "ms alone, after": after,
        "memory MB, earlier half": max(memory[: len(memory) // 2]),
        "memory MB, later half": max(memory[len(memory) // 2 :]),
    }


async def _milliseconds_alone(target: Target) -> float:
    """Median latency of a few requests, one at a time."""
    times = []
    async with connect(target) as connection:
        for jpeg in images.workload(_REQUESTS_ALONE):
            request, started = connection.prepare(jpeg), time.perf_counter()
            await connection.send(request)
            times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times)


def _ends(requests: Sequence[Sent], flood: Flood, best: float) -> dict[str, float]:
    """How the requests of a flood ended.

    Raises:
        NotMeasured: some were neither answered nor turned away, or none were answered.
    """
    answered = [each for each in requests if not each.error]
    turned_away = [each for each in requests if each.is_turned_away]
    if failed := [each.error for each in requests if each.error and not each.is_turned_away]:
        raise NotMeasured(f"{len(failed)} of {len(requests)} requests failed, one of them with: {failed[0]}")
    if not answered:
        raise NotMeasured("none of the requests was answered")
    within = sum(each.ended < flood.begin + flood.seconds for each in answered)
    return {
        "images/s in the flood": within / flood.seconds,
        "offered / best": len(requests) / flood.seconds / best,
        "share turned away": len(turned_away) / len(requests),
        "ms accepted, p99": _p99_ms(answered),
        "ms turned away, p99": _p99_ms(turned_away) if turned_away else 0.0,
    }


def _p99_ms(requests: Sequence[Sent]) -> float:
    return float(np.percentile([each.ended - each.sent for each in requests], 99)) * 1000
