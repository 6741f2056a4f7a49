"""Rows in, embeddings or faults out, in the same order.

Comes in: the rows of one dynamic batch. Goes out: for each row its embedding or the fault that befell it. Decoding and
preprocessing run in threads (Pillow releases the GIL), encoding on the device. It must not know of requests or Triton.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from service.decode import Decoder
from service.errors import Fault, InternalFault
from service.preprocess import Preprocessor

logger = logging.getLogger(__name__)

Embedding = npt.NDArray[np.float32]


class Row(NamedTuple):
    """One encoded image as the client sent it."""

    data: bytes
    base64_encoded: bool


class PixelEncoder(Protocol):
    """What the pipeline asks of `encoder.Encoder`."""

    def encode(self, pixels: npt.NDArray[np.uint8]) -> Embedding:
        """uint8 RGB pixels `[N, S, S, 3]` -> float32 embeddings `[N, D]`."""


class Pipeline:
    """The stages of one device, in a row. Several threads may call it: one batch decodes while another encodes."""

    def __init__(
        self, decoder: Decoder, preprocessor: Preprocessor, encoder: PixelEncoder, decode_threads: Executor
    ) -> None:
        self._decoder = decoder
        self._preprocessor = preprocessor
        self._encoder = encoder
        self._decode_threads = decode_threads

    def embed(self, rows: Sequence[Row]) -> list[Embedding | Fault]:
        """Each row's embedding (float32 `[D]`) or its fault, in the rows' order. Never raises for a row's sake."""
        side = self._preprocessor.size
        pixels = np.empty((len(rows), side, side, 3), dtype=np.uint8)
        outcomes: list[Embedding | Fault | None] = list(self._decode_threads.map(self._prepare, rows, pixels))
        sound = [index for index, fault in enumerate(outcomes) if fault is None]
        if sound:
            embeddings = self._encode(pixels if len(sound) == len(rows) else pixels[sound])
            for index, embedding in zip(sound, embeddings, strict=True):
                outcomes[index] = embedding
        return [outcome for outcome in outcomes if outcome is not None]

    def _prepare(self, row: Row, pixels: npt.NDArray[np.uint8]) -> Fault | None:
        try:
            image = self._decoder.decode(row.data, row.base64_encoded)
            self._preprocessor.resize_into(image, pixels)
        except Fault as fault:
            return fault
        except Exception:
            logger.exception("a row of %d bytes could not be prepared", len(row.data))
            return InternalFault("the image could not be prepared")
        return None

    def _encode(self, pixels: npt.NDArray[np.uint8]) -> Sequence[Embedding | Fault]:
        try:
            return list(self._encoder.encode(pixels))
        except Exception:
            logger.exception("a batch of %d images could not be encoded", len(pixels))
            return [InternalFault("the image could not be encoded")] * len(pixels)
