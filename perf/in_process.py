"""The other side of the ratios: the service's decoder, resizing and encoder in this process, without a server."""

import contextlib
import functools
import io
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from transformers import SiglipVisionModel

from perf import machine
from service.cores import Cores
from service.metrics import Metrics
from service.model.checkpoint import load_model
from service.model.devices import resolve_dtype
from service.model.encoder import Encoder
from service.preprocessing.decode import Decoder
from service.preprocessing.preprocess import Preprocessor
from service.settings import load_settings

Pixels = npt.NDArray[np.uint8]
Prepare = Callable[[bytes, Pixels], None]

_LEAST_CALLS = 3


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's short name and its folder; a bare architecture gets random weights."""

    name: str
    path: str
    random_weights: bool

    @property
    def arguments(self) -> tuple[str, ...]:
        """How the service is told to serve it."""
        return ("--checkpoint", self.path, "--random-weights", str(self.random_weights).lower())


DEMO = Checkpoint("demo", f"{machine.REPOSITORY}/service/demo/checkpoint", random_weights=False)
BASE = Checkpoint("base-224", f"{machine.REPOSITORY}/perf/architectures/base-patch16-224", random_weights=True)
SO400M = Checkpoint("so400m-384", f"{machine.REPOSITORY}/perf/architectures/so400m-patch14-384", random_weights=True)


class _OneEach(Cores):
    """One core a call, and no call waits: how many there are is the measurement's to choose."""

    @contextlib.contextmanager
    def share(self) -> Iterator[int]:
        yield 1


class Components:
    """A checkpoint's decoder, preprocessor and encoders, set up as the service does by default; weights come when used.

    Attributes:
        device: where the encoders compute.
        preprocessor: for its size S and its filter.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: str = "auto") -> None:
        settings = load_settings([])
        self.device = device
        self.preprocessor = Preprocessor.from_pretrained(checkpoint.path)
        self._checkpoint = checkpoint
        self._dtype = resolve_dtype(dtype, device)
        self._decoder = Decoder(settings.max_image_bytes, settings.max_image_pixels, self.preprocessor.least_side)

    @functools.cached_property
    def encoder(self) -> Encoder:
        """The encoder on all cores, or the GPU."""
        return self._encoder(Cores())

    @functools.cached_property
    def single_core_encoder(self) -> Encoder:
        """The same on one core a call, however many calls there are."""
        return self._encoder(_OneEach())

    def load(self) -> SiglipVisionModel:
        """`transformers`' own model, in float32 on the CPU."""
        return load_model(self._checkpoint.path, None, self._checkpoint.random_weights)

    def pixel_values(self, pixels: Pixels) -> torch.Tensor:
        """Pixels (uint8 `[N, S, S, 3]`) as the model reads them (float32 `[N, 3, S, S]`)."""
        scale, offset = torch.tensor(self.preprocessor.scale), torch.tensor(self.preprocessor.offset)
        return (torch.from_numpy(pixels) * scale - offset).permute(0, 3, 1, 2)

    def _encoder(self, cores: Cores) -> Encoder:
        encoder = Encoder(
            self.load(), self.device, self._dtype, self.preprocessor.scale, self.preprocessor.offset, cores, Metrics()
        )
        if self.device.type == "cuda":
            encoder.warm_up(load_settings([]).max_batch_size)  # which records what runs fastest
        return encoder

    def prepare(self, jpeg: bytes, pixels: Pixels) -> None:
        """The service's way from a JPEG to pixels (uint8 `[S, S, 3]`)."""
        decoded = self._decoder.decode(jpeg)
        self.preprocessor.resize_into(pixels, decoded.pixels, decoded.extent, decoded.transpose)

    def prepare_plainly(self, jpeg: bytes, pixels: Pixels) -> None:
        """Pillow's plain way from a JPEG to pixels (uint8 `[S, S, 3]`)."""
        side = self.preprocessor.size
        image = Image.open(io.BytesIO(jpeg)).convert("RGB").resize((side, side), self.preprocessor.resample)
        pixels[...] = np.asarray(image)

    def empty(self, count: int) -> Pixels:
        """Room for `count` images (uint8 `[count, S, S, 3]`)."""
        return np.empty((count, self.preprocessor.size, self.preprocessor.size, 3), np.uint8)

    def batch(self, jpegs: Sequence[bytes], prepare: Prepare) -> Pixels:
        """The JPEGs (uint8 `[N, S, S, 3]`), each by `self.prepare` or `self.prepare_plainly`."""
        batch = self.empty(len(jpegs))
        for jpeg, pixels in zip(jpegs, batch, strict=True):
            prepare(jpeg, pixels)
        return batch


def images_per_second(calls: Sequence[Callable[[], int]], seconds: float) -> float:
    """Images a second of `calls`, each made again and again by a thread of its own; a call returns its images.

    Whole calls are timed, the first of them not, for at least `seconds` and three calls.
    """
    with ThreadPoolExecutor(len(calls)) as threads:
        return sum(threads.map(lambda call: _pace(call, seconds), calls))


def _pace(call: Callable[[], int], seconds: float) -> float:
    call()
    started, images, calls = time.perf_counter(), 0, 0
    while calls < _LEAST_CALLS or time.perf_counter() - started < seconds:
        images, calls = images + call(), calls + 1
    return images / (time.perf_counter() - started)


def encoding(encoder: Encoder, batch: int) -> Callable[[], int]:
    """A call that encodes `batch` ready images."""
    pixels = encoder.room_for(batch)
    pixels[...] = np.random.default_rng(0).integers(0, 256, pixels.shape, np.uint8)
    return lambda: len(encoder.encode(pixels))


def encoder_alone(components: Components, batch: Callable[[], int], seconds: float) -> dict[str, Callable[[], float]]:
    """Ways to have the encoder as fast as it can be, each with its measurement in images/s; `batch` is asked late."""
    if components.device.type == "cuda":
        several, side_by_side = 2, components.encoder
    else:
        several, side_by_side = machine.cores(), components.single_core_encoder
    return {
        "one call at a time": lambda: images_per_second([encoding(components.encoder, batch())], seconds),
        f"{several} calls at a time": lambda: images_per_second([encoding(side_by_side, batch())] * several, seconds),
    }


def bare_loops(
    components: Components, jpegs: Sequence[bytes], batch: int, seconds: float
) -> dict[str, Callable[[], float]]:
    """Plain loops over `jpegs` without a server, each with its measurement in images/s."""
    jpegs = jpegs[:batch]

    def whole_batches() -> float:
        encoder = components.single_core_encoder  # here, or each of the threads would make one of its own

        def whole_batch() -> int:
            return len(encoder.encode(components.batch(jpegs, components.prepare_plainly)))

        return images_per_second([whole_batch] * machine.cores(), seconds)

    return {
        "threads that decode ahead of one that encodes": lambda: _decoded_ahead(components, jpegs, seconds),
        "threads that do all for their own batch": whole_batches,
    }


def _decoded_ahead(components: Components, jpegs: Sequence[bytes], seconds: float) -> float:
    """Images/s of a pool that decodes the next batch while the caller encodes this one on all cores."""
    with ThreadPoolExecutor(machine.cores()) as pool:

        def batches() -> Iterator[Pixels]:
            ahead = components.empty(len(jpegs))
            prepared = pool.map(components.prepare_plainly, jpegs, ahead)
            while True:
                list(prepared)
                ready, ahead = ahead, components.empty(len(jpegs))
                prepared = pool.map(components.prepare_plainly, jpegs, ahead)
                yield ready

        source = batches()
        return images_per_second([lambda: len(components.encoder.encode(next(source)))], seconds)
