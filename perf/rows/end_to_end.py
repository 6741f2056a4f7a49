"""Rows that hold the running service against the same work in this process, without it."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from perf import images, machine
from perf.bench import IN_FLIGHT, Bench
from perf.findings import Figure, Findings, NotMeasured, number
from perf.in_process import BASE, DEMO, SO400M, Checkpoint, Components, bare_loops, encoder_alone
from perf.load.client import LoadResult, discounted
from perf.service_under_test import Service
from service.model.devices import resolve_dtype
from service.model.encoder import Encoder

# How each side of a ratio is measured, in images a second, by its name.
Sides = dict[str, Callable[[], float]]
_PROTOCOLS = {"raw HTTP": "kserve-http", "gRPC": "kserve-grpc"}


def efficiency_base(bench: Bench) -> Findings:
    """base-224, which fits every device."""
    return _efficiency(bench, BASE)


def efficiency_so400m(bench: Bench) -> Findings:
    """so400m-384, for which the service is made.

    Raises:
        NotMeasured: it would take too long.
    """
    if resolve_dtype("auto", bench.device) == torch.float32:
        raise NotMeasured(f"{bench.device} has no units for half precision, without which so400m takes too long")
    return _efficiency(bench, SO400M)


def _efficiency(bench: Bench, checkpoint: Checkpoint) -> Findings:
    batches: list[float] = []

    def end_to_end(protocol: str) -> float:
        before = service.statistics()
        result = bench.load(service.target(protocol), IN_FLIGHT, slow=bench.device.type == "cpu")
        batches.append(service.statistics().since(before).mean_batch)
        return result.images_per_second

    def batch() -> int:
        return math.ceil(statistics.fmean(batches[-len(_PROTOCOLS) :]))

    components = Components(checkpoint, bench.device)
    with bench.service(*checkpoint.arguments) as service:
        alone = encoder_alone(components, batch, bench.seconds)
        alone = _without_the_idle_service(service, alone, bench.shared_cores)
        served: Sides = {name: partial(end_to_end, protocol) for name, protocol in _PROTOCOLS.items()}
        samples = bench.alternate(f"efficiency, {checkpoint.name}", {**served, **alone})
    way = _best(samples, alone)
    note = f"batches of {statistics.median(map(math.ceil, batches)):.0f}, {way}, {components.encoder.dtype}"
    figures = [
        Figure(
            f"{checkpoint.name} on {bench.device.type}, {name}",
            "ratio",
            samples[name],
            samples[way],
            at_least=0.95,
            note=f"{_median(samples[name])} / {_median(samples[way])} images/s; {note}",
        )
        for name in _PROTOCOLS
    ]
    return Findings(figures)


def overhead(bench: Bench) -> Findings:
    """The embedded checkpoint, where the encoder costs least beside everything else."""
    components = Components(DEMO, bench.device)
    with bench.service(*DEMO.arguments) as service:
        results: dict[str, list[LoadResult]] = {name: [] for name in _PROTOCOLS}

        def end_to_end(name: str) -> float:
            results[name].append(bench.load(service.target(_PROTOCOLS[name]), IN_FLIGHT))
            return results[name][-1].images_per_second

        loops = bare_loops(components, images.workload(), IN_FLIGHT, bench.seconds)
        loops = _without_the_idle_service(service, loops, bench.shared_cores)
        served: Sides = {name: partial(end_to_end, name) for name in _PROTOCOLS}
        samples = bench.alternate("overhead", {**served, **loops})
    way = _best(samples, loops)
    figures = [_overhead_figure(name, results[name], samples[way], bench.shared_cores) for name in _PROTOCOLS]
    raw = [Figure(f"{name}, with the client", "ratio", samples[name], samples[way]) for name in _PROTOCOLS]
    return Findings(figures + raw, notes=[f"The better bare loop: {way}."])


def _overhead_figure(name: str, results: Sequence[LoadResult], reference: Sequence[float], cores: float) -> Figure:
    left = [discounted(result.images_per_second, result.client_cores, cores) for result in results]
    client = statistics.median(result.client_cores for result in results)
    note = f"{_median(left)} / {_median(reference)} images/s; client: {client:.2f} of {machine.cores()} cores"
    return Figure(f"{name}, client's CPU time discounted", "ratio", left, reference, at_least=0.8, note=note)


def alone(bench: Bench) -> Findings:
    """The embedded checkpoint, one request at a time."""
    components = Components(DEMO, bench.device)
    with bench.service(*DEMO.arguments) as service:
        sides = {name: partial(_latency_ms, bench, service, protocol) for name, protocol in _PROTOCOLS.items()}
        samples = bench.alternate("alone", {**sides, "in process": partial(_best_work_ms, components, bench.seconds)})
    in_process = samples["in process"]
    return Findings(
        [
            Figure(
                f"{name}, latency beyond the work itself",
                "difference",
                samples[name],
                in_process,
                unit="ms",
                at_most=4.0,
                note=f"{statistics.median(samples[name]):.2f} - {statistics.median(in_process):.2f} ms",
            )
            for name in _PROTOCOLS
        ]
    )


def _without_the_idle_service(service: Service, sides: Sides, cores: float) -> Sides:
    """The same rates, as they were if the idle service, which sends itself images, took nothing of these cores."""

    def measured(measure: Callable[[], float]) -> float:
        began, before = time.perf_counter(), sum(service.cpu_seconds())
        rate = measure()
        taken = (sum(service.cpu_seconds()) - before) / (time.perf_counter() - began)
        return discounted(rate, taken, cores)

    return {name: partial(measured, measure) for name, measure in sides.items()}


def _latency_ms(bench: Bench, service: Service, protocol: str) -> float:
    return bench.load(service.target(protocol), 1).p50_ms


def _best_work_ms(components: Components, seconds: float) -> float:
    """On all cores or on one, whichever is faster: beside other programs, threads that wait for each other are not."""
    return min(
        _work_ms(components, encoder, seconds / 2) for encoder in (components.encoder, components.single_core_encoder)
    )


def _work_ms(components: Components, encoder: Encoder, seconds: float) -> float:
    """Median milliseconds of decode + resize + encode, one image at a time."""
    times: list[float] = []
    pixels, started = components.empty(1), time.perf_counter()
    while time.perf_counter() - started < seconds:
        for jpeg in images.shipped():
            begun = time.perf_counter()
            components.prepare(jpeg, pixels[0])
            encoder.encode(pixels)
            times.append((time.perf_counter() - begun) * 1000)
    return statistics.median(times)


def _best(samples: dict[str, list[float]], names: Sides) -> str:
    return max(names, key=lambda name: statistics.median(samples[name]))


def _median(samples: Sequence[float]) -> str:
    return number(statistics.median(samples))
