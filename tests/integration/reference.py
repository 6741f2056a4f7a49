"""What the embeddings ought to be: `transformers`' own model and image processor, float32, one image at a time."""

import functools
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from transformers import SiglipImageProcessorPil, SiglipVisionModel

from perf.images import shipped

REPOSITORY = Path(__file__).parents[2]
CHECKPOINT = REPOSITORY / "service" / "demo" / "checkpoint"

Embeddings = npt.NDArray[np.float32]


@functools.cache
def photographs() -> tuple[bytes, ...]:
    """The JPEGs of the load test."""
    return tuple(shipped())


@functools.cache
def _model() -> SiglipVisionModel:
    return SiglipVisionModel.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()


def pixel_values(images: Sequence[Image.Image]) -> npt.NDArray[np.float32]:
    """RGB images -> float32 `[N, 3, S, S]`, by the reference's image processor."""
    processor = SiglipImageProcessorPil.from_pretrained(CHECKPOINT)
    values: npt.NDArray[np.float32] = processor(images=list(images), return_tensors="np")["pixel_values"]
    return values


def embed(encoded: Sequence[bytes]) -> Embeddings:
    """Encoded images -> float32 `[N, D]`."""
    values = pixel_values([Image.open(io.BytesIO(image)).convert("RGB") for image in encoded])
    with torch.inference_mode():
        rows = [_model()(pixel_values=torch.from_numpy(value[None])).pooler_output[0].numpy() for value in values]
    return np.stack(rows)
