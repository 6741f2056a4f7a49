"""Pixel values are those of transformers' own image processor; what it could do and this one cannot is refused."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from transformers import SiglipImageProcessorPil

from service.decode import Decoder
from service.errors import StartupFault
from service.preprocess import Preprocessor
from tests.images import NAMES, sample

# Without a background Pillow warns of palettes with opacities; in the service that is logged.
pytestmark = pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")

REFERENCE_LIKE = Decoder(2**25, 50_000_000, exif_orientation=False, background=None)
ROUNDING = 1e-6
CONFIGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "base-224": {
        "image_processor_type": "SiglipImageProcessor",
        "do_resize": True,
        "size": {"height": 224, "width": 224},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 0.00392156862745098,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "SiglipProcessor",
    },
    "so400m-384": {"size": {"height": 384, "width": 384}, "resample": 3},
    "bilinear": {"size": {"height": 64, "width": 64}, "resample": 2},
    "nearest": {"size": {"height": 64, "width": 64}, "resample": 0},
    "a mean and a deviation a channel": {
        "size": {"height": 64, "width": 64},
        "image_mean": [0.481, 0.457, 0.408],
        "image_std": [0.268, 0.261, 0.275],
    },
    "not normalised": {"size": {"height": 64, "width": 64}, "do_normalize": False},
    "another factor": {"size": {"height": 64, "width": 64}, "rescale_factor": 1 / 127.5, "image_mean": [1.0, 1.0, 1.0]},
    "nothing but the size": {"size": {"height": 64, "width": 64}, "do_normalize": False, "do_rescale": False},
    "normalising null": {"size": {"height": 64, "width": 64}, "do_normalize": None},
    "rescaling null": {"size": {"height": 64, "width": 64}, "do_rescale": None},
}
HARMLESS: dict[str, Any] = {
    "_valid_processor_keys": ["images", "do_resize"],
    "do_convert_rgb": None,
    "do_center_crop": None,
    "do_pad": False,
    "crop_size": {"height": 9, "width": 9},
    "default_to_square": False,
    "image_processor_type": "SiglipImageProcessorFast",
    "some_new_switch": False,
    "some_new_option": None,
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "shortest edge": ({"size": {"shortest_edge": 224}}, "size"),
    "not square": ({"size": {"height": 224, "width": 225}}, "size"),
    "crop": ({"do_center_crop": True}, "do_center_crop"),
    "pad": ({"do_pad": True}, "do_pad"),
    "no resize": ({"do_resize": False}, "do_resize"),
    "resize null": ({"do_resize": None}, "do_resize"),
    "another processor": ({"image_processor_type": "Siglip2ImageProcessor"}, "image_processor_type"),
    "unknown key": ({"do_sharpen": True}, "do_sharpen"),
    "unknown number": ({"patch_count": 16}, "patch_count"),
    "resample out of range": ({"resample": 9}, "resample"),
    "resample by name": ({"resample": "bicubic"}, "resample"),
    "two channels": ({"image_mean": [0.5, 0.5]}, "image_mean"),
    "divided by zero": ({"image_std": [0.5, 0.5, 0.0]}, "image_std"),
    "a mean for all channels": ({"image_mean": 0.5}, "image_mean"),
    "no side": ({"size": {"height": 0, "width": 0}}, "size"),
    "a side of words": ({"size": {"height": "big", "width": "big"}}, "size"),
    "a factor of words": ({"rescale_factor": "small"}, "rescale_factor"),
}


def _rgb(name: str) -> Image.Image:
    return REFERENCE_LIKE.decode(sample(name).data, False)


def _reference(image: Image.Image, config: dict[str, Any]) -> npt.NDArray[np.float32]:
    processed = SiglipImageProcessorPil(**config)(images=image, return_tensors="np")
    values: npt.NDArray[np.float32] = processed.pixel_values[0].astype(np.float32)
    return values


def _pixel_values(image: Image.Image, preprocessor: Preprocessor) -> npt.NDArray[np.float32]:
    """float32 `[3, S, S]`: what the device makes of the resized pixels."""
    pixels = np.full((preprocessor.size, preprocessor.size, 3), 99, dtype=np.uint8)
    preprocessor.resize_into(image, pixels)
    scale, offset = np.array(preprocessor.scale, np.float32), np.array(preprocessor.offset, np.float32)
    values: npt.NDArray[np.float32] = (pixels.astype(np.float32) * scale - offset).transpose(2, 0, 1)
    return values


def _assert_like_reference(image: Image.Image, config: dict[str, Any]) -> None:
    expected = _reference(image, config)
    found = _pixel_values(image, Preprocessor.from_config(config))
    assert found.shape == expected.shape
    # Relative to values beyond 1: a deviation of 0.26 makes values of 2, raw pixels go up to 255.
    assert np.abs(found - expected).max() <= ROUNDING * max(1.0, float(np.abs(expected).max()))


@pytest.mark.parametrize("name", NAMES)
def test_pixel_values_are_the_references(name: str) -> None:
    _assert_like_reference(_rgb(name), CONFIGS["base-224"])


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_each_configuration_is_carried_out_as_by_the_reference(config: dict[str, Any]) -> None:
    for name in ("jpeg_photo", "png_rgba", "one_pixel"):
        _assert_like_reference(_rgb(name), config)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "png_gray_16_bit"])
def test_without_the_deviations_the_rgb_image_is_pillows(name: str) -> None:
    expected = Image.open(io.BytesIO(sample(name).data)).convert("RGB")
    assert _rgb(name).tobytes() == expected.tobytes()


def test_harmless_keys_change_nothing() -> None:
    base = CONFIGS["base-224"]
    assert Preprocessor.from_config({**base, **HARMLESS}) == Preprocessor.from_config(base)


@pytest.mark.parametrize(("config", "key"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_carried_out_is_refused_by_name(config: dict[str, Any], key: str) -> None:
    with pytest.raises(StartupFault, match=rf"asks for .*{key}") as caught:
        Preprocessor.from_config({**CONFIGS["base-224"], **config})
    assert str(caught.value).isprintable()


def test_a_folder_is_read_and_its_lack_is_told(tmp_path: Path) -> None:
    for problem in (None, "{", "[1"):
        if problem:
            (tmp_path / "preprocessor_config.json").write_text(problem)
        with pytest.raises(StartupFault, match=r"has no readable preprocessor_config\.json"):
            Preprocessor.from_pretrained(str(tmp_path))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(CONFIGS["bilinear"]))
    assert Preprocessor.from_pretrained(str(tmp_path)) == Preprocessor.from_config(CONFIGS["bilinear"])
