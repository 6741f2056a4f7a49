"""The same embeddings, the same fingerprint; any difference that could change one shows."""

from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import SiglipVisionConfig, SiglipVisionModel

from service.model.fingerprint import fingerprint
from service.model.vision_tower import VisionTower
from service.preprocessing.preprocess import Preprocessor

PREPROCESSOR = Preprocessor(32, Image.Resampling.BICUBIC, (1 / 127.5,) * 3, (1.0,) * 3)
SETTINGS = {"preprocessor": asdict(PREPROCESSOR), "exif_orientation": True, "background": (255, 255, 255)}
# Of this very model and these settings, on whatever machine.
EXPECTED = "afac59a14b6f093d"


def _model(**config: object) -> Any:
    """A small model whose weights are numbers that every machine computes alike."""
    sizes: dict[str, Any] = {
        "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 32, "patch_size": 16,
    }  # fmt: skip
    model = SiglipVisionModel(SiglipVisionConfig(**{**sizes, **config}))
    with torch.no_grad():
        for index, weight in enumerate(model.parameters()):
            weight.copy_(torch.arange(weight.numel()).reshape(weight.shape) / 1024 + index)
    return model


def test_it_is_the_same_on_every_machine_and_in_any_order() -> None:
    assert fingerprint(_model(), **SETTINGS) == EXPECTED
    assert fingerprint(_model(), **dict(reversed(SETTINGS.items()))) == EXPECTED


def test_how_weights_lie_in_memory_does_not_show() -> None:
    """A file of pickled weights keeps it."""
    model = _model()
    model.to(memory_format=torch.channels_last)
    assert fingerprint(model, **SETTINGS) == EXPECTED


def test_a_single_bit_of_any_weight_shows() -> None:
    model = _model()
    seen = {EXPECTED}
    for weight in model.parameters():
        last = weight.data.view(-1)[-1:]
        kept = last.clone()
        last.copy_(torch.nextafter(kept, kept + 1))
        seen.add(fingerprint(model, **SETTINGS))
        last.copy_(kept)
    assert len(seen) == 1 + len(list(model.parameters()))
    assert fingerprint(model, **SETTINGS) == EXPECTED


@pytest.mark.parametrize(
    "config", [{"hidden_act": "relu"}, {"layer_norm_eps": 1e-5}, {"num_attention_heads": 4}], ids=str
)
def test_arithmetic_that_no_weight_tells_of_shows(config: dict[str, object]) -> None:
    assert fingerprint(_model(**config), **SETTINGS) != EXPECTED


@pytest.mark.parametrize(
    "other",
    [
        {"preprocessor": asdict(replace(PREPROCESSOR, size=48))},
        {"preprocessor": asdict(replace(PREPROCESSOR, resample=Image.Resampling.BILINEAR))},
        {"preprocessor": asdict(replace(PREPROCESSOR, scale=(1 / 127.5, 1 / 127.5, 1 / 127.49999999999999)))},
        {"preprocessor": asdict(replace(PREPROCESSOR, offset=(1.0, 1.0, 0.9)))},
        {"preprocessor": asdict(replace(PREPROCESSOR, exact=True))},
        {"exif_orientation": False},
        {"background": None},
        {"background": (255, 255, 254)},
        {"dtype": "bfloat16"},
    ],
    ids=str,
)
def test_each_setting_shows(other: dict[str, Any]) -> None:
    assert fingerprint(_model(), **{**SETTINGS, **other}) != EXPECTED


def test_every_field_that_the_arithmetic_reads_is_part_of_it() -> None:
    model = _model()
    read: set[str] = set()

    class Watched:
        def __getattr__(self, name: str) -> Any:
            read.add(name)
            return getattr(config, name)

    config, model.__dict__["config"] = model.config, Watched()
    VisionTower(model, torch.device("cpu"), torch.float32)
    assert {"layer_norm_eps", "num_attention_heads"} <= read <= set(VisionTower.SETTINGS)
