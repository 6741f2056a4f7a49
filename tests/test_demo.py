"""The embedded checkpoint and what it was made with: drawings, training run, and the quality of the embeddings."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, SiglipModel, SiglipVisionModel

from service.demo.drawings import COLOURS, SHAPES, describe, draw
from service.demo.train import CHECKPOINT, train

CLASSES = [(colour, shape) for colour in COLOURS for shape in SHAPES]
SEED = 20_000  # of no training run's drawings
EACH = 4  # drawings a class

Vectors = npt.NDArray[np.float32]


def _drawn(rng: np.random.Generator, each: int) -> list[Image.Image]:
    """Images of every class, `each` at a time, after a trip through JPEG."""
    images: list[Image.Image] = []
    for colour, shape in CLASSES:
        for _ in range(each):
            file = io.BytesIO()
            draw(rng, colour, shape).image.save(file, "JPEG", quality=85)
            images.append(Image.open(file))
    return images


def _embed(images: Sequence[Image.Image]) -> Vectors:
    model = SiglipVisionModel.from_pretrained(CHECKPOINT)
    processor = AutoImageProcessor.from_pretrained(CHECKPOINT)
    with torch.inference_mode():
        vectors = model(**processor(images=list(images), return_tensors="pt")).pooler_output.numpy()
    return _unit(vectors)


def _unit(vectors: Vectors) -> Vectors:
    scaled: Vectors = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return scaled


def test_drawings_follow_the_generator_and_the_request() -> None:
    first, again, other = (draw(np.random.default_rng(seed), "red", "star") for seed in (1, 1, 2))
    assert (first.image.tobytes(), first.caption) == (again.image.tobytes(), again.caption)
    assert first.image.tobytes() != other.image.tobytes()
    assert first.caption == f"a {first.size} red star {first.position}"
    assert describe("orange", "star") == "an orange star"
    with pytest.raises(ValueError, match="no such shape: 'cube'"):
        draw(np.random.default_rng(1), shape="cube")


def test_each_drawing_shows_its_colour_in_the_place_its_caption_names() -> None:
    rng = np.random.default_rng(SEED)
    for colour, shape in CLASSES:
        drawing = draw(rng, colour, shape)
        assert drawing.image.mode == "RGB" and all(96 <= side <= 256 for side in drawing.image.size)
        distance = np.linalg.norm(np.asarray(drawing.image, dtype=float) - COLOURS[colour], axis=-1)
        rows, columns = np.nonzero(distance < 30)
        x, y = columns.mean() / drawing.image.width, rows.mean() / drawing.image.height
        assert ("left" in drawing.position, "right" in drawing.position) == (x < 0.42, x > 0.58), drawing.caption
        assert ("top" in drawing.position, "bottom" in drawing.position) == (y < 0.42, y > 0.58), drawing.caption


def test_checkpoint_is_small() -> None:
    assert sum(file.stat().st_size for file in CHECKPOINT.iterdir()) <= 4_000_000


def test_text_tower_names_held_out_drawings() -> None:
    """That images alone are told apart, the service shows: tests/integration/test_demo_checkpoint.py."""
    queries = _embed(_drawn(np.random.default_rng(SEED), EACH))
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    captions = [describe(colour, shape) for colour, shape in CLASSES]
    with torch.inference_mode():
        tokens = tokenizer(captions, padding="max_length", return_tensors="pt")
        texts = SiglipModel.from_pretrained(CHECKPOINT).get_text_features(**tokens).pooler_output.numpy()
    nearest = (queries @ _unit(texts).T).argmax(axis=1)
    assert (nearest == np.repeat(np.arange(len(CLASSES)), EACH)).mean() >= 0.9


def test_training_repeats_itself_and_writes_a_loadable_checkpoint(tmp_path: Path) -> None:
    for name in ("first", "again"):
        train(tmp_path / name, seed=3, steps=1)
    weights = (tmp_path / "first" / "model.safetensors").read_bytes()
    assert weights == (tmp_path / "again" / "model.safetensors").read_bytes()
    assert weights != (CHECKPOINT / "model.safetensors").read_bytes()
    written = {file.name for file in (tmp_path / "first").iterdir()}
    assert written == {file.name for file in CHECKPOINT.iterdir()}
    AutoTokenizer.from_pretrained(tmp_path / "first")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "first")
    _, report = SiglipModel.from_pretrained(tmp_path / "first", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    pixel_values = processor(images=[draw(np.random.default_rng(0)).image], return_tensors="pt")["pixel_values"]
    assert pixel_values.shape == (1, 3, 64, 64)
