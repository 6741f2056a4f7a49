"""Rows about the running service alone: start, growth with the load, cache, stages, and two clients that must agree."""

import statistics
from functools import partial

from prometheus_client.parser import text_string_to_metric_families

from perf.bench import IN_FLIGHT, Bench, require_answers
from perf.findings import Figure, Findings, NotMeasured, Table, number
from perf.in_process import BASE, DEMO, SO400M
from perf.load.client import Load, OwnClient
from perf.load.perf_analyzer import PerfAnalyzer
from perf.load.protocols import Target
from perf.service_under_test import Service

_LEVELS = (1, 4, 16, 60, 240, 1000)
_REPEATED = (0.0, 0.5, 0.95)
_CACHE_MB = 256
_STAGE_HISTOGRAM = "embed_stage_seconds"
_STAGE_TABLES = (
    "Milliseconds of each stage that an image costs",
    "Milliseconds of CPU time that an image costs",
    "Milliseconds that an image waits",
)
_STAGES_NOTE = (
    "The stages are the service's own histograms, divided by the images that Triton counted. They are elapsed time:"
    " where more batches are in the works than there are cores, waiting for a core counts."
)


def start(bench: Bench) -> Findings:
    """The embedded checkpoint; on CUDA so400m-384."""
    if bench.device.type == "cuda":
        return Findings([_start_figure(bench, "so400m-384 on cuda", SO400M.arguments, 20.0)])
    return Findings([_start_figure(bench, "demo on cpu", DEMO.arguments, 10.0)])


def _start_figure(bench: Bench, name: str, arguments: tuple[str, ...], at_most: float) -> Figure:
    def seconds() -> float:
        with bench.service(*arguments) as service:
            return service.start_seconds

    seconds()  # warms the caches of files and kernels
    samples = bench.alternate(f"start, {name}", {"start": seconds})["start"]
    return Figure(name, "value", samples, unit="s", at_most=at_most)


def growth(bench: Bench) -> Findings:
    """The embedded checkpoint from one request in flight to a thousand."""
    levels = _LEVELS[:2] if bench.quick else _LEVELS
    with bench.service(*DEMO.arguments) as service:
        sides = {str(level): partial(_growth_point, bench, service, level) for level in levels}
        samples = bench.alternate("growth", sides)
    points = {
        level: {column: [point[column] for point in points] for column in points[0]}
        for level, points in samples.items()
    }
    rates = [points[str(level)]["images/s"] for level in levels]
    figures = [
        Figure(
            f"{level} in flight / best at fewer",
            "ratio",
            rates[index],
            # The best of each round, from the levels before this one.
            [max(of_round) for of_round in zip(*rates[:index], strict=True)],
            at_least=0.95,
        )
        for index, level in enumerate(levels)
        if index
    ]
    return Findings(figures, [Table("By requests in flight", "in flight", points)])


def _growth_point(bench: Bench, service: Service, in_flight: int) -> dict[str, float]:
    before = service.statistics()
    result = bench.load(service.target("kserve-grpc"), in_flight)
    return {
        "images/s": result.images_per_second,
        "p50 ms": result.p50_ms,
        "p99 ms": result.p99_ms,
        "batch": service.statistics().since(before).mean_batch,
        "memory MB": service.vitals().total_mb,
    }


def repeats(bench: Bench) -> Findings:
    """The embedded checkpoint with a cache and without, under shares of images that were sent before."""
    with (
        bench.service(*DEMO.arguments) as without,
        bench.service(*DEMO.arguments, "--cache-mb", str(_CACHE_MB)) as cached,
    ):
        services = {"cache": cached, "no cache": without}
        sides = {
            f"{share:.0%}, {name}": partial(_repeated_rate, bench, service, share)
            for share in _REPEATED
            for name, service in services.items()
        }
        samples = bench.alternate("repeats", sides)
    points = {f"{share:.0%}": {name: samples[f"{share:.0%}, {name}"] for name in services} for share in _REPEATED}
    figures = [
        Figure(f"{share} repeats, cache / no cache", "ratio", rates["cache"], rates["no cache"])
        for share, rates in points.items()
    ]
    return Findings(figures, [Table(f"Images/s by share of repeats, --cache-mb {_CACHE_MB}", "repeats", points)])


def _repeated_rate(bench: Bench, service: Service, share: float) -> float:
    return bench.load(service.target("kserve-http"), IN_FLIGHT, repeated=share).images_per_second


def stages(bench: Bench) -> Findings:
    """What an image costs, stage by stage, and how long it waits: the embedded checkpoint, on CUDA base-224."""
    checkpoint = BASE if bench.device.type == "cuda" else DEMO
    with bench.service(*checkpoint.arguments) as service:
        samples = bench.alternate("stages", {"stages": partial(_stage_times, bench, service)})["stages"]
    tables = []
    for index, name in enumerate(_STAGE_TABLES):
        stages = samples[0][index]
        points = {stage: {"ms": [times[index][stage] for times in samples]} for stage in stages}
        tables.append(Table(f"{name}, {checkpoint.name} on {bench.device.type}", "stage", points))
    return Findings(tables=tables, notes=[_STAGES_NOTE])


def _stage_times(bench: Bench, service: Service) -> tuple[dict[str, float], ...]:
    """Milliseconds an image, for each of the tables."""
    before, statistics_before, cpu_before = stage_totals(service.metrics()), service.statistics(), service.cpu_seconds()
    result = bench.load(service.target("kserve-http"), IN_FLIGHT)
    after, added, cpu_after = stage_totals(service.metrics()), service.statistics(), service.cpu_seconds()
    added = added.since(statistics_before)
    if not after:
        raise NotMeasured(f"this service has no histogram {_STAGE_HISTOGRAM}")
    elapsed = {stage: 1000 * (after[stage] - before.get(stage, 0.0)) / added.images for stage in after}
    own, tritons = (1000 * (late - early) / added.images for early, late in zip(cpu_before, cpu_after, strict=True))
    cpu = {
        "the service's process": own,
        "Triton and its stubs": tritons,
        "the load generator": 1000 * result.client_cores / result.images_per_second,
    }
    queued = 1000 * added.queue_seconds / added.images
    return elapsed, cpu, {"Triton's queue, mean": queued, "whole request at the client, p50": result.p50_ms}


def stage_totals(metrics: str) -> dict[str, float]:
    """Seconds spent in each stage, from the text of a Prometheus scrape."""
    families = text_string_to_metric_families(metrics)
    samples = [sample for family in families if family.name == _STAGE_HISTOGRAM for sample in family.samples]
    return {sample.labels["stage"]: sample.value for sample in samples if sample.name.endswith("_sum")}


def clients(bench: Bench) -> Findings:
    """Two load generators on one service, of which each could be wrong."""
    if bench.perf_analyzer is None:
        raise NotMeasured("no perf_analyzer that runs here (see PERF_ANALYZER), or --client own")
    with bench.service(*DEMO.arguments) as service:
        targets = [service.target(protocol) for protocol in ("kserve-grpc", "kserve-grpc-base64")]
        return Findings([_agreement(bench, target) for target in targets])


def _agreement(bench: Bench, target: Target) -> Figure:
    sides = {
        type(generator).__name__: partial(_rate, generator, target, Load(IN_FLIGHT, bench.seconds))
        for generator in (bench.own_client, bench.perf_analyzer)
        if generator
    }
    ours, theirs = bench.alternate(f"clients, {target.protocol}", sides).values()
    note = f"{number(statistics.median(ours))} / {number(statistics.median(theirs))} images/s"
    return Figure(target.protocol, "ratio", ours, theirs, at_least=0.9, at_most=1.1, note=note)


def _rate(generator: OwnClient | PerfAnalyzer, target: Target, load: Load) -> float:
    return require_answers(generator.measure(target, load)).images_per_second
