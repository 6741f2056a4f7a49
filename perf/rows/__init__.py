"""The rows of the report, by the name that the command line knows them by."""

from collections.abc import Callable
from dataclasses import dataclass

from perf.bench import Bench
from perf.findings import Findings
from perf.rows import components, end_to_end, overload, running


@dataclass(frozen=True)
class RowKind:
    """A row's title, what it divides by what (or measures), and its measurement."""

    title: str
    what: str
    measure: Callable[[Bench], Findings]


_EFFICIENCY = "images/s end to end / images/s of `Encoder.encode` alone on ready batches of the service's own mean size"

ROWS: dict[str, RowKind] = {
    "efficiency-so400m": RowKind("Service efficiency, so400m-384", _EFFICIENCY, end_to_end.efficiency_so400m),
    "efficiency-base": RowKind("Service efficiency, base-224", _EFFICIENCY, end_to_end.efficiency_base),
    "overhead": RowKind(
        "Overhead on a tiny model",
        "images/s end to end / images/s of the better of two bare loops in one process: Pillow, encoder, threads",
        end_to_end.overhead,
    ),
    "alone": RowKind(
        "Alone",
        "p50 latency of one request at a time - median time of the same images' decode + resize + encode in process",
        end_to_end.alone,
    ),
    "large-photographs": RowKind(
        "Large photographs",
        "images/s of 12-megapixel JPEGs through the service's decode + resize / through plain Pillow, one thread each",
        components.large_photographs,
    ),
    "decoding": RowKind(
        "Decoding",
        "images/s of decode + resize in a thread a core / in one thread, times the cores",
        components.decoding,
    ),
    "cpu-dtype": RowKind(
        "CPU dtype", "images/s of the encoder on a CPU with `--dtype auto` / with float32", components.cpu_dtype
    ),
    "gpu-encoder": RowKind(
        "GPU, encoder", "images/s of so400m-384 by batch size, and its share of the card's peak", components.gpu_encoder
    ),
    "fp8": RowKind(
        "FP8", "cosine of embeddings with linear layers in FP8 (e4m3, emulated) with those in float32", components.fp8
    ),
    "start": RowKind(
        "Start", "seconds from the command to ready, after a first start that warms caches", running.start
    ),
    "growth": RowKind("Growth", "images/s at N requests in flight / the best at fewer in flight, gRPC", running.growth),
    "overload": RowKind(
        "Overload",
        "images/s answered while ten times the capacity is offered for a minute / the same service's best",
        overload.overload,
    ),
    "repeats": RowKind(
        "Repeats", "images/s with a cache / without, for a share of images that were sent before", running.repeats
    ),
    "stages": RowKind("Stages", "where the time of an image goes, raw HTTP, 60 in flight", running.stages),
    "clients": RowKind("Clients", "images/s by the own client / by perf_analyzer, gRPC, 60 in flight", running.clients),
}
