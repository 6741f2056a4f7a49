"""What every row of the report needs: rounds, a device, load generators and a line of progress."""

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from tqdm import tqdm  # type: ignore[import-untyped]

from perf import machine
from perf.findings import NotMeasured
from perf.load.client import Load, LoadResult, OwnClient
from perf.load.perf_analyzer import PerfAnalyzer
from perf.load.protocols import Target
from perf.service_under_test import Service

T = TypeVar("T")

IN_FLIGHT = 60


@dataclass(frozen=True)
class Bench:
    """How rows are measured.

    Attributes:
        rounds: how often each side of each ratio is measured.
        seconds: least length of one measurement.
        device: where the models run.
        own_client: the load generator for every protocol.
        perf_analyzer: the load generator for gRPC, where there is one.
        quick: few levels, few images: to see that a row runs, not what it gives.
    """

    rounds: int
    seconds: float
    device: torch.device
    own_client: OwnClient
    perf_analyzer: PerfAnalyzer | None
    quick: bool

    @property
    def shared_cores(self) -> float:
        """Those for which the service competes with what puts it under load; on a GPU nobody takes what it needs."""
        return machine.cores() if self.device.type == "cpu" else math.inf

    def alternate(self, name: str, sides: Mapping[str, Callable[[], T]]) -> dict[str, list[T]]:
        """Measure each side once a round, one after the other: for each side its samples, one a round.

        Every second round goes backwards, so that a machine that gets slower or faster favours no side.
        """
        samples: dict[str, list[T]] = {side: [] for side in sides}
        with tqdm(total=self.rounds * len(sides), desc=name, unit="measurement", dynamic_ncols=True) as progress:
            for number in range(self.rounds):
                for side in list(sides)[:: -1 if number % 2 else 1]:
                    progress.set_postfix_str(side)
                    samples[side].append(sides[side]())
                    progress.update()
        return samples

    def service(self, *arguments: str) -> Service:
        """The service on this bench's device."""
        return Service("--device", str(self.device), *arguments)

    def load(self, target: Target, in_flight: int, slow: bool = False, repeated: float | None = None) -> LoadResult:
        """Load a target and insist that every request is answered.

        Args:
            slow: there are only a few batches in `seconds`; perf_analyzer, whose windows have a fixed length, would
                count a batch too many or too few.
            repeated: share of images that were sent before.

        Raises:
            NotMeasured: a request failed.
        """
        load = Load(in_flight, self.seconds, repeated, seed=time.monotonic_ns() & 0xFFFFFF)
        generator: OwnClient | PerfAnalyzer = self.own_client
        if self.perf_analyzer and target.protocol.startswith("kserve-grpc") and not slow and repeated is None:
            generator = self.perf_analyzer
        return require_answers(generator.measure(target, load))


def failure(results: Sequence[LoadResult]) -> str:
    """What went wrong with requests, in one line; empty when all of them were answered."""
    errors = sum((Counter(result.errors) for result in results), Counter[str]())
    if not errors:
        return ""
    (message, count), *_ = errors.most_common(1)
    return f"{errors.total()} requests failed, {count} of them with: {message}"


def require_answers(result: LoadResult) -> LoadResult:
    """The result, when every request was answered.

    Raises:
        NotMeasured: one was not; a fast failure is no throughput.
    """
    if problem := failure([result]):
        raise NotMeasured(problem)
    return result
