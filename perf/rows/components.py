"""Rows about single components of the service, measured in this process."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from perf import images, machine
from perf.bench import Bench
from perf.embeddings import cosines
from perf.findings import Figure, Findings, NotMeasured, Table
from perf.in_process import BASE, DEMO, SO400M, Components, Pixels, Prepare, encoding, images_per_second
from service.settings import load_settings

_LARGE_PHOTOGRAPHS = 4
_CPU_DTYPE_BATCH = 16
_SO400M_FLOP = 0.67e12
_MATMUL_SIDE = 8192
# Dense bfloat16 FLOP/s from NVIDIA's data sheets, by torch's name of the card.
_PEAKS = {
    "NVIDIA H200": 989e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA GeForce RTX 4090": 165e12,
}


def large_photographs(bench: Bench) -> Findings:
    """Decode and resize alone; the two kinds of pixels also through an encoder."""
    jpegs = images.large(1 if bench.quick else _LARGE_PHOTOGRAPHS)
    cpu, findings = torch.device("cpu"), Findings()
    for checkpoint in (BASE, SO400M):
        components = Components(checkpoint, cpu, "float32")
        side = components.preprocessor.size
        samples = bench.alternate(
            f"large photographs, S={side}",
            {
                "service": partial(_preparing, components, components.prepare, jpegs, bench.seconds),
                "Pillow": partial(_preparing, components, components.prepare_plainly, jpegs, bench.seconds),
            },
        )
        speed = Figure(f"S={side}, one thread", "ratio", samples["service"], samples["Pillow"], at_least=4.0)
        ours, plain = (components.batch(jpegs, prepare) for prepare in (components.prepare, components.prepare_plainly))
        findings.figures.extend([speed, _pixel_figure(side, ours, plain)])
        if checkpoint is BASE:
            findings.figures.append(_cosine_figure(components, ours, plain))
    return findings


def _preparing(
    components: Components, prepare: Prepare, jpegs: Sequence[bytes], seconds: float, threads: int = 1
) -> float:
    def call() -> int:
        torch.set_num_threads(1)  # of the calling thread
        return len(components.batch(jpegs, prepare))

    return images_per_second([call] * threads, seconds)


def _pixel_figure(side: int, ours: Pixels, plain: Pixels) -> Figure:
    each = np.abs(ours.astype(np.int16) - plain).mean(axis=(1, 2, 3))
    note = f"of {len(each)} photographs, the worst has {each.max():.3f}"
    return Figure(f"S={side}, mean pixel difference of 255", "exact", [float(each.mean())], at_most=0.3, note=note)


def _cosine_figure(components: Components, ours: Pixels, plain: Pixels) -> Figure:
    left, right = (components.encoder.encode(pixels) for pixels in (ours, plain))
    others = [cosines(right, np.roll(right, turn, axis=0)).max() for turn in range(1, len(right))]
    note = "base-224 with random weights, float32, the lowest of all"
    note += f"; between different photographs up to {max(others):.4f}" if others else ""
    lowest = float(cosines(left, right).min())
    return Figure("embedding cosine", "exact", [lowest], at_least=0.999, note=note)


class _ProductsInFp8(TorchFunctionMode):
    """Rounds what goes into linear layers: weights scaled row by row, tokens one by one, as finely as cards can."""

    def __init__(self, width: int | None) -> None:
        """Only into layers to or from so many units; None for all."""
        super().__init__()
        self._width = width

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is functional.linear:
            tokens, weight, *bias = args
            # Those of the head's one token an image cost nothing as they are.
            if tokens.shape[-2] > 1 and (self._width is None or self._width in weight.shape):
                args = (_in_fp8(tokens), _in_fp8(weight), *bias)
        return function(*args, **(kwargs or {}))


def _in_fp8(values: torch.Tensor) -> torch.Tensor:
    scale = values.abs().amax(-1, keepdim=True).clamp_min(1e-12) / torch.finfo(torch.float8_e4m3fn).max
    return (values / scale).to(torch.float8_e4m3fn).float() * scale


@torch.inference_mode()
def fp8(bench: Bench) -> Findings:
    """Emulated in float32: whether FP8 is worth a setting is a question of its embeddings first."""
    findings = Findings()
    for checkpoint in (DEMO,) if bench.quick else (DEMO, SO400M):
        components = Components(checkpoint, torch.device("cpu"), "float32")
        pixel_values = components.pixel_values(components.batch(images.shipped(), components.prepare))
        model = components.load()
        exact = model(pixel_values).pooler_output
        note = "random weights" if checkpoint.random_weights else "the embedded checkpoint"
        for layers, width in (("all linear layers", None), ("MLPs", model.config.intermediate_size)):
            with _ProductsInFp8(width):
                rounded = model(pixel_values).pooler_output
            lowest = float(functional.cosine_similarity(exact, rounded).min())
            name = f"{checkpoint.name}, {layers} in FP8"
            findings.figures.append(Figure(name, "exact", [lowest], at_least=0.999, note=note))
    return findings


def decoding(bench: Bench) -> Findings:
    """Decode and resize alone, by more and more threads of this process, which the GIL and what cores share hold up."""
    components, jpegs, cores = Components(BASE, torch.device("cpu")), images.shipped(), machine.cores()
    counts = [count for count in (1, 2, 4, 8, 12, 16, 32, 64) if count < cores] + [cores]
    preparing = partial(_preparing, components, components.prepare, jpegs, bench.seconds)
    samples = bench.alternate("decoding", {str(count): partial(preparing, threads=count) for count in counts})
    linear = [cores * rate for rate in samples["1"]]
    figure = Figure(f"S=224, {cores} threads / {cores} times one", "ratio", samples[str(cores)], linear)
    points = {count: {"images/s": rates} for count, rates in samples.items()}
    return Findings([figure], [Table("S=224", "threads", points)])


def cpu_dtype(bench: Bench) -> Findings:
    """base-224 in the dtype that the service takes by itself, and in float32."""
    cpu = torch.device("cpu")
    encoders = {dtype: Components(BASE, cpu, dtype).encoder for dtype in ("auto", "float32")}
    sides = {
        dtype: partial(images_per_second, [encoding(encoder, _CPU_DTYPE_BATCH)], bench.seconds)
        for dtype, encoder in encoders.items()
    }
    samples = bench.alternate("cpu-dtype", sides)
    chosen = encoders["auto"].dtype
    note = f"auto is {chosen} on this CPU; batches of {_CPU_DTYPE_BATCH}"
    least = None if chosen == torch.float32 else 1.6  # the same twice
    figure = Figure("base-224, auto / float32", "ratio", samples["auto"], samples["float32"], at_least=least, note=note)
    return Findings([figure])


def gpu_encoder(bench: Bench) -> Findings:
    """so400m-384 with random weights, from one image a batch to the largest batch."""
    if bench.device.type != "cuda":
        raise NotMeasured("no CUDA device")
    encoder, largest = Components(SO400M, bench.device).encoder, load_settings([]).max_batch_size
    sizes = [size for size in (1, 2, 4, 8, 16, 32, 64, 128) if size < largest] + [largest]
    sides = {str(size): partial(images_per_second, [encoding(encoder, size)] * 2, bench.seconds) for size in sizes}
    samples = bench.alternate("gpu-encoder", {**sides, "matmul": partial(_matmul_flops, bench.device)})
    matmul = samples.pop("matmul")
    flops = [_SO400M_FLOP * rate for rate in samples[str(largest)]]
    figures = [Figure(f"batches of {largest}: share of a bf16 matmul's speed", "ratio", flops, matmul)]
    card = torch.cuda.get_device_name(bench.device)
    if card in _PEAKS:
        share = [flop / _PEAKS[card] for flop in flops]
        note = f"{card}: {_PEAKS[card] / 1e12:.0f} TFLOP/s dense bf16 in its data sheet"
        figures.append(Figure(f"batches of {largest}: share of peak", "value", share, at_least=0.55, note=note))
    points = {size: {"images/s": rates} for size, rates in samples.items()}
    return Findings(figures, [Table("so400m-384, two calls at a time", "batch", points)])


def _matmul_flops(device: torch.device) -> float:
    """FLOP/s of a large square matrix product in bfloat16, the fastest thing that the card does."""
    left, right = (torch.randn(_MATMUL_SIDE, _MATMUL_SIDE, dtype=torch.bfloat16, device=device) for _ in range(2))
    repetitions = 20
    for count in (3, repetitions):  # the first to warm up
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        for _ in range(count):
            torch.matmul(left, right)
        torch.cuda.synchronize(device)
    return 2 * _MATMUL_SIDE**3 * repetitions / (time.perf_counter() - started)
