"""The embedded checkpoint's numbers mean something, all the way from JPEG bytes to embeddings."""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from service.demo.drawings import COLOURS, SHAPES, draw
from tests.integration.clients import embed_json
from tests.integration.service_process import ServiceProcess

CLASSES = [(colour, shape) for colour in COLOURS for shape in SHAPES]
KNOWN_SEED, UNKNOWN_SEED = 987_001, 987_002


def test_held_out_drawings_are_classified_and_swapped_channels_break_it(running: ServiceProcess) -> None:
    assert len(CLASSES) >= 40
    known = _embeddings(running, KNOWN_SEED, each=8).reshape(len(CLASSES), 8, -1).mean(axis=1)
    truth = np.repeat(np.arange(len(CLASSES)), 4)
    assert (_nearest(_embeddings(running, UNKNOWN_SEED, each=4), known) == truth).mean() >= 0.95
    swapped = _nearest(_embeddings(running, UNKNOWN_SEED, each=4, swap=True), known)
    assert (swapped == truth).mean() < 0.5
    red_or_blue = np.array([CLASSES[index][0] in ("red", "blue") for index in truth])
    assert (swapped == truth)[red_or_blue].mean() < 0.05


def _embeddings(running: ServiceProcess, seed: int, each: int, swap: bool = False) -> npt.NDArray[np.float32]:
    """Normalised embeddings of `each` drawings a class, in the order of CLASSES, `[classes * each, D]`."""
    rng = np.random.default_rng(seed)
    images = [_jpeg(draw(rng, colour, shape).image, swap) for colour, shape in CLASSES for _ in range(each)]
    rows = np.concatenate([embed_json(running, images[start : start + 60]) for start in range(0, len(images), 60)])
    normalized: npt.NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return normalized


def _jpeg(image: Image.Image, swap: bool) -> bytes:
    if swap:
        image = Image.merge("RGB", image.split()[::-1])
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _nearest(queries: npt.NDArray[np.float32], means: npt.NDArray[np.float32]) -> npt.NDArray[np.intp]:
    result: npt.NDArray[np.intp] = (queries @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T).argmax(axis=1)
    return result
