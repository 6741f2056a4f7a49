"""`python -m perf soak`: the service under mixed load for minutes, and what it holds meanwhile.

Comes in: how long. Goes out: the slope of its memory, the account of all requests, and what was seen over time.
"""

import asyncio
import itertools
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from perf.bench import Bench
from perf.findings import MIN_SLOPE_MINUTES, Figure, Findings, NotMeasured, Table
from perf.in_process import DEMO
from perf.load.cases import Outcome, WrongAnswer
from perf.load.mixed import Account, MixedLoad
from perf.service_under_test import Service
from perf.vitals import Vitals

TITLE = "Soak"
WHAT = "memory, threads, file descriptors and latency of the service under good and hostile requests in waves"
ROLES = ("service", "tritonserver", "stubs")

_SAMPLES_A_LINE = 15
_WARM_UP_MINUTES = 1.0
LEAST_MINUTES = _WARM_UP_MINUTES + MIN_SLOPE_MINUTES
_MOST_MB_A_MINUTE = 1.0
_MOST_MESSAGES = 5


@dataclass(frozen=True)
class Sample:
    """What was seen at a moment; latencies (seconds) are of the good requests answered since the sample before."""

    minute: float
    vitals: Vitals
    latencies: Sequence[float]
    seconds: float

    def columns(self) -> dict[str, float]:
        """By the names of the report's columns; no latencies where nothing was answered."""
        vitals = self.vitals
        seen = {
            "memory MB": vitals.total_mb,
            **{f"{role} MB": vitals.memory_mb.get(role, 0.0) for role in ROLES},
            "/dev/shm MB": vitals.shared_mb,
            "threads": vitals.threads,
            "files": vitals.files,
            "answers/s": len(self.latencies) / self.seconds,
        }
        if self.latencies:
            p50, p99 = np.percentile(self.latencies, (50, 99)) * 1000
            seen.update({"p50 ms": float(p50), "p99 ms": float(p99)})
        return seen


def soak(bench: Bench, minutes: float) -> Findings:
    """The embedded checkpoint under mixed load.

    Raises:
        NotMeasured: the service ended meanwhile.
    """
    with bench.service(*DEMO.arguments) as service:
        load = MixedLoad(service.target("kserve-http"), service.target("kserve-grpc"))
        try:
            samples = asyncio.run(_watch(service, load, minutes))
        except WrongAnswer as error:
            raise NotMeasured(str(error)) from error
    return findings(samples, load.account)


async def _watch(service: Service, load: MixedLoad, minutes: float) -> list[Sample]:
    """Put the load on, and look at the service every second while it lasts."""
    samples: list[Sample] = []
    running = asyncio.create_task(load.run(minutes * 60))
    started = before = time.monotonic()
    moments = _moments(started)
    while not running.done():
        await asyncio.wait([running], timeout=max(0.0, next(moments) - time.monotonic()))
        # In a thread: reading what a large process has mapped takes the kernel a while.
        vitals = await asyncio.to_thread(service.vitals)
        now = time.monotonic()
        samples.append(Sample((now - started) / 60, vitals, load.account.take_latencies(), now - before))
        before = now
        if len(samples) % _SAMPLES_A_LINE == 0 or running.done():
            print(_progress(samples[-1], minutes, load.account), flush=True)
    await running
    return samples


def _moments(started: float) -> Iterator[float]:
    """When to look: once in each second.

    Not in step with tritonserver, which gives memory back every second: what comes and goes would look like a trend.
    """
    return (started + second + random.random() for second in itertools.count())


def _progress(sample: Sample, minutes: float, account: Account) -> str:
    seen = ", ".join(f"{value:.0f} {name}" for name, value in sample.columns().items())
    return f"{sample.minute:.1f} of {minutes:g} min: {seen}; {account.sent.total()} sent, {account.wrong.total()} wrong"


def findings(samples: Sequence[Sample], account: Account) -> Findings:
    """The figures, the table over time (which is also drawn), the table of requests, and the worst that came back."""
    notes = [f"{count} wrong answers: {message}" for message, count in account.wrong.most_common(_MOST_MESSAGES)]
    figures = [_slope(samples), _unaccounted(account), _failed_by_neighbours(account)]
    return Findings(figures, [_over_time(samples), _by_case(account)], notes)


def _slope(samples: Sequence[Sample]) -> Figure:
    counted = [sample for sample in samples if sample.minute >= _WARM_UP_MINUTES]
    note = ""
    if counted:
        first = _median_mb([sample for sample in counted if sample.minute <= counted[0].minute + 1])
        last = _median_mb([sample for sample in counted if sample.minute >= counted[-1].minute - 1])
        note = f"medians of its first and last minute: {first:.0f} MB, {last:.0f} MB; {len(counted)} samples"
    return Figure(
        "memory after the first minute, slope",
        "slope",
        [sample.vitals.total_mb for sample in counted],
        [sample.minute for sample in counted],
        unit="MB a minute",
        at_most=_MOST_MB_A_MINUTE,
        note=note,
    )


def _median_mb(samples: Sequence[Sample]) -> float:
    return statistics.median(sample.vitals.total_mb for sample in samples)


def _unaccounted(account: Account) -> Figure:
    ends = ", ".join(f"{account.total(outcome)} {outcome.value}" for outcome in Outcome)
    note = f"{account.sent.total()} sent: {ends}"
    return Figure("requests without the right answer", "exact", [account.unaccounted], at_most=0, note=note)


def _failed_by_neighbours(account: Account) -> Figure:
    failed = account.total(Outcome.BATCH_FAILED)
    note = "those in one batch with a request whose lengths lie; it gets none where setup has found a C compiler"
    return Figure("requests failed by a neighbour's fault", "exact", [failed], at_most=0, note=note)


def _over_time(samples: Sequence[Sample]) -> Table:
    points: dict[str, dict[str, list[float]]] = {}
    for sample in samples:
        point = points.setdefault(str(int(sample.minute) + 1), {})
        for name, value in sample.columns().items():
            point.setdefault(name, []).append(value)
    return Table("Minute by minute, one sample a second", "minute", points)


def _by_case(account: Account) -> Table:
    points: dict[str, dict[str, list[float]]] = {
        case: {
            "sent": [sent],
            **{outcome.value: [account.ended[case][outcome]] for outcome in Outcome},
            "wrong": [sent - account.ended[case].total()],
        }
        for case, sent in account.sent.items()
    }
    return Table("Requests by kind, and how they ended", "request", points)
