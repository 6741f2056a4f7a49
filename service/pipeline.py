"""Rows in, embeddings or faults out, in the same order.

Comes in: the rows of one dynamic batch. Goes out: for each row its embedding or the fault that befell it. Decoding and
preprocessing run in threads (they release the GIL), encoding on the device. It must not know of requests or Triton.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import NamedTuple, ParamSpec, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from service.cache import EmbeddingCache
from service.cores import Cores
from service.errors import Fault, InternalFault
from service.metrics import Metrics
from service.preprocessing.decode import Decoder
from service.preprocessing.preprocess import Preprocessor

logger = logging.getLogger(__name__)

Pixels: TypeAlias = npt.NDArray[np.uint8]
Embedding: TypeAlias = npt.NDArray[np.float32]
Outcome: TypeAlias = Embedding | Fault
P = ParamSpec("P")
R = TypeVar("R")


class Row(NamedTuple):
    """One encoded image as the client sent it."""

    data: bytes | memoryview
    base64_encoded: bool


class PixelEncoder(Protocol):
    """What the pipeline asks of `encoder.Encoder`."""

    def room_for(self, count: int) -> Pixels:
        """An array for the pixels of `count` images, `[count, S, S, 3]`."""

    def encode(self, pixels: Pixels) -> Embedding:
        """uint8 RGB pixels `[N, S, S, 3]` -> float32 embeddings `[N, D]`."""


class Pipeline:
    """The stages of one device, in a row. Several threads may call it: one batch decodes while another encodes."""

    def __init__(
        self,
        decoder: Decoder,
        preprocessor: Preprocessor,
        encoder: PixelEncoder,
        cores: Cores,
        helpers: Executor,
        metrics: Metrics,
        cache: EmbeddingCache | None = None,
        canary: bytes | None = None,
    ) -> None:
        """Join the stages.

        Args:
            cores: what a batch decodes on; the calling thread is the first to use them.
            helpers: threads that use the others.
            cache: where the embeddings of repeated images come from; None encodes every image.
            canary: the image that the cache never takes in, so that the encoder itself answers for it each time.
        """
        self._decoder = decoder
        self._preprocessor = preprocessor
        self._encoder = encoder
        self._cores = cores
        self._helpers = helpers
        self._metrics = metrics
        self._cache = cache
        self._canary = canary

    def embed(self, rows: Sequence[Row]) -> list[Outcome]:
        """Each row's embedding (float32 `[D]`) or its fault, in the rows' order. A row's fault is never raised."""
        with self._metrics.busy_lanes.track_inprogress():
            images = [_attempt(self._decoder.image_bytes, *row) for row in rows]
            readable = [image for image in images if not isinstance(image, Fault)]
            embedded = iter(self._embed_new(readable, self._cache) if self._cache else self._embed_all(readable))
            outcomes = [image if isinstance(image, Fault) else next(embedded) for image in images]
            codes = Counter(outcome.code if isinstance(outcome, Fault) else "ok" for outcome in outcomes)
            for code, count in codes.items():
                self._metrics.answered(code, count)
            return outcomes

    def _embed_new(self, images: Sequence[bytes | memoryview], cache: EmbeddingCache) -> list[Outcome]:
        """Embed the images that the cache does not know, each of them once."""
        digests = [cache.digest(image) for image in images]
        outcomes: dict[bytes, Outcome] = {**cache.get_all(digests)}
        new = {digest: image for digest, image in zip(digests, images, strict=True) if digest not in outcomes}
        for digest, outcome in zip(new, self._embed_all(list(new.values())), strict=True):
            outcomes[digest] = outcome
            if not isinstance(outcome, Fault) and new[digest] != self._canary:
                cache.put(digest, outcome)
        self._metrics.repeats.inc(len(images) - len(new))
        return [outcomes[digest] for digest in digests]

    def _embed_all(self, images: Sequence[bytes | memoryview]) -> list[Outcome]:
        if not images:  # no need to wait for a core
            return []
        pixels = self._encoder.room_for(len(images))
        faults = self._prepare_all(images, pixels)
        sound = [index for index, fault in enumerate(faults) if fault is None]
        if not sound:
            return [fault for fault in faults if fault is not None]
        embeddings = iter(self._encode(pixels if len(sound) == len(images) else pixels[sound]))
        return [next(embeddings) if fault is None else fault for fault in faults]

    def _prepare_all(self, images: Sequence[bytes | memoryview], pixels: Pixels) -> list[Fault | None]:
        """Write each image into its place in `pixels`; the faults of those that cannot be, None for the others.

        This thread does so, and helpers on the rest of this batch's share of the cores.
        """
        faults: list[Fault | None] = [None] * len(images)
        indices = iter(range(len(images)))  # shared by the threads: whoever is free takes the next

        def work_off() -> None:
            for index in indices:
                faults[index] = _attempt(self._prepare, images[index], pixels[index])

        with self._cores.share() as threads:
            helpers = [self._helpers.submit(work_off) for _ in range(min(threads, len(images)) - 1)]
            work_off()
            for helper in helpers:
                # A helper that has not started yet, as other batches keep it busy, has nothing left to do.
                if not helper.cancel():
                    helper.result()
        return faults

    def _prepare(self, image: bytes | memoryview, square: Pixels) -> None:
        with self._metrics.stage("decode"):
            decoded = self._decoder.decode(image)
        with self._metrics.stage("resize"):
            self._preprocessor.resize_into(square, decoded.pixels, decoded.extent, decoded.transpose)

    def _encode(self, pixels: Pixels) -> Sequence[Outcome]:
        try:
            embeddings = self._encoder.encode(pixels)
        except Exception:
            logger.exception("a batch of %d images could not be encoded", len(pixels))
            return [InternalFault("the image could not be encoded")] * len(pixels)
        # Activations may overflow in float16; such an embedding would spoil an index in silence.
        fault = InternalFault("the embedding is not finite; the service needs another --dtype, or weights that are")
        return finite_or(fault, embeddings)


def _attempt(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R | Fault:
    """The result of one image's work, or its fault."""
    try:
        return work(*args, **kwargs)
    except Fault as fault:
        return fault.without_traceback()
    except Exception:
        logger.exception("an image could not be prepared")
        return InternalFault("the image could not be prepared")


def finite_or(fault: Fault, embeddings: Embedding) -> list[Outcome]:
    """Each of the embeddings `[N, D]`, but the fault in the place of one that holds a NaN or an infinity."""
    finite = np.isfinite(embeddings).all(axis=1)
    return [embedding if is_finite else fault for embedding, is_finite in zip(embeddings, finite, strict=True)]
