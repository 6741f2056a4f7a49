"""Pixel values are those of transformers' own image processor; what it could do and this one cannot is refused.

In exact mode they are so to the bit, else as closely as torch's filters and JPEGs decoded at a reduced scale come.
"""

import base64
import dataclasses
import functools
import hashlib
import io
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from transformers import SiglipImageProcessorPil

from perf import photographs
from service.errors import StartupFault
from service.preprocessing.decode import DecodedImage, Decoder
from service.preprocessing.preprocess import PIXELS_VERSION, Preprocessor
from tests.images import MISREAD_BY_PILLOW, NAMES, Pixels, oriented, picture, sample

# Without a background Pillow warns of palettes with opacities; in the service that is logged.
pytestmark = pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")

REFERENCE_LIKE = Decoder(2**25, 50_000_000, exif_orientation=False, background=None)
ROUNDING = 1e-6
TRANSPOSES = list(Image.Transpose)
# The digest of this version's pixels of fixed pictures, on whatever machine.
PIXELS = (1, "5017568e1dc22e9d")
FIXED = (
    "png_rgba", "png_palette_transparent", "png_gray_16_bit", "png_rgb_16_bit_transparent", "webp_lossless_alpha",
    "gif_transparent", "bmp_unused_alpha", "bmp_run_lengths_8_bit", "tiff_gray_12_bit", "tiff_gray_premultiplied",
)  # fmt: skip
# Wider and narrower than the square in either direction, up to an aspect of 1:500, and none at all to resize; of the
# tall and narrow ones Pillow resizes the height first.
SIZES = [
    (1, 1), (2, 1), (1, 3), (5, 5), (63, 64), (64, 64), (65, 63), (500, 375), (375, 500), (375, 700), (1000, 2),
    (10, 1000), (63, 65),
]  # fmt: skip
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


@functools.cache
def _photo(index: int) -> bytes:
    """One of the four shipped photographs, the longer side 500 pixels; or number 4, which is large, its sides odd."""
    if index < 4:
        return base64.b64decode(json.loads(photographs.BASE64_JSON.read_text())["data"][index]["INPUT_IMAGE"][0])
    return photographs.encode_jpeg(photographs.render(3, 1999, 1501), 90)


def _decoded(name: str) -> DecodedImage:
    return REFERENCE_LIKE.decode(sample(name).data)


def _whole(pixels: Pixels, transpose: Image.Transpose | None = None) -> DecodedImage:
    """Pixels as they come from a decoder that reduces nothing."""
    return DecodedImage(pixels, (pixels.shape[1], pixels.shape[0]), transpose)


def _resized(image: DecodedImage, side: int, exact: bool, resample: int = 3) -> npt.NDArray[np.float64]:
    config = {"size": {"height": side, "width": side}, "resample": resample}
    square = np.full((side, side, 3), 99, dtype=np.uint8)
    Preprocessor.from_config(config, exact).resize_into(square, image.pixels, image.extent, image.transpose)
    return square.astype(np.float64)


def _difference(image: DecodedImage, whole: DecodedImage, side: int, resample: int = 3) -> tuple[float, float]:
    """How far the fast filter's pixels of the first are from the exact ones of the second: the mean and the most."""
    error = np.abs(_resized(image, side, False, resample) - _resized(whole, side, True, resample))
    return float(error.mean()), float(error.max())


def _reference(image: DecodedImage, config: dict[str, Any]) -> npt.NDArray[np.float32]:
    upright = Image.fromarray(image.pixels)
    if image.transpose is not None:
        upright = upright.transpose(image.transpose)
    processed = SiglipImageProcessorPil(**config)(images=upright, return_tensors="np")
    values: npt.NDArray[np.float32] = processed.pixel_values[0].astype(np.float32)
    return values


def _pixel_values(image: DecodedImage, preprocessor: Preprocessor) -> npt.NDArray[np.float32]:
    """float32 `[3, S, S]`: what the device makes of the resized pixels."""
    square = np.full((preprocessor.size, preprocessor.size, 3), 99, dtype=np.uint8)
    preprocessor.resize_into(square, image.pixels, image.extent, image.transpose)
    scale, offset = np.array(preprocessor.scale, np.float32), np.array(preprocessor.offset, np.float32)
    values: npt.NDArray[np.float32] = (square.astype(np.float32) * scale - offset).transpose(2, 0, 1)
    return values


def _assert_like_reference(image: DecodedImage, config: dict[str, Any]) -> None:
    expected = _reference(image, config)
    found = _pixel_values(image, Preprocessor.from_config(config, exact=True))
    assert found.shape == expected.shape
    # Relative to values beyond 1: a deviation of 0.26 makes values of 2, raw pixels go up to 255.
    assert np.abs(found - expected).max() <= ROUNDING * max(1.0, float(np.abs(expected).max()))


@pytest.mark.parametrize("name", NAMES)
def test_pixel_values_are_the_references(name: str) -> None:
    _assert_like_reference(_decoded(name), CONFIGS["base-224"])


@pytest.mark.parametrize("transpose", TRANSPOSES)
def test_a_turned_image_has_the_references_pixel_values(transpose: Image.Transpose) -> None:
    _assert_like_reference(_whole(picture(290, 170), transpose), CONFIGS["base-224"])


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_each_configuration_is_carried_out_as_by_the_reference(config: dict[str, Any]) -> None:
    for name in ("jpeg_photo", "png_rgba", "one_pixel"):
        _assert_like_reference(_decoded(name), config)


@pytest.mark.parametrize(
    ("config", "exact", "is_exact", "least_side"),
    [
        ("base-224", False, False, 672),
        ("so400m-384", False, False, 1152),
        ("bilinear", False, False, 192),
        ("bilinear", True, True, None),
        ("nearest", False, True, None),
    ],
)
def test_only_what_torch_resizes_too_may_be_decoded_smaller(
    config: str, exact: bool, is_exact: bool, least_side: int | None
) -> None:
    preprocessor = Preprocessor.from_config(CONFIGS[config], exact)
    assert (preprocessor.exact, preprocessor.least_side) == (is_exact, least_side)


@pytest.mark.parametrize("noise", [False, True], ids=["picture", "noise"])
@pytest.mark.parametrize(("resample", "mean"), [(2, 0.1), (3, 0.02)], ids=["bilinear", "bicubic"])
@pytest.mark.parametrize(("width", "height"), SIZES, ids=str)
def test_the_fast_filter_is_the_references_but_for_rounding(
    width: int, height: int, resample: int, mean: float, noise: bool
) -> None:
    shape = (height, width, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8) if noise else picture(width, height)
    for side in (64, 224):
        found = _difference(_whole(pixels), _whole(pixels), side, resample)
        assert found[0] <= mean and found[1] <= 2


@pytest.mark.parametrize(("width", "height"), [(290, 170), (170, 290), (1000, 200), (200, 1000)])
@pytest.mark.parametrize("transpose", TRANSPOSES)
def test_the_fast_filter_turns_like_the_reference(transpose: Image.Transpose, width: int, height: int) -> None:
    """Noise, as of its contrasts a filter clips more the one pass before the other than the other before the one."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    mean, most = _difference(_whole(noise, transpose), _whole(noise, transpose), 224)
    assert mean <= 0.02 and most <= 2


@pytest.mark.parametrize(
    ("photo", "side", "extent"),
    [
        (0, 16, (125.0, 93.75)),
        (0, 32, (250.0, 187.5)),
        (1, 32, (250.0, 166.5)),
        (3, 32, (187.5, 250.0)),
        (4, 64, (499.75, 375.25)),
        (4, 224, (999.5, 750.5)),
    ],
)
def test_from_a_jpeg_decoded_smaller_come_nearly_the_same_pixels(
    photo: int, side: int, extent: tuple[float, float]
) -> None:
    reduced = dataclasses.replace(REFERENCE_LIKE, least_side=3 * side).decode(_photo(photo))
    whole = REFERENCE_LIKE.decode(_photo(photo))
    assert reduced.extent == extent
    mean, most = _difference(reduced, whole, side)
    assert mean < 0.3 and most <= 6
    # A picture that fills all of its pixels would be stretched by the half, or less, of the last one.
    assert _difference(_whole(reduced.pixels), whole, side)[0] > 2 * mean


def test_other_pixels_are_another_version() -> None:
    """Of four JPEGs, of pictures without loss, and of noise that is tall or wide, upright and turned.

    Where this fails, pixels have changed: raise the version if it is by more than rounding, and pin them anew.
    """
    noise = np.random.default_rng(0).integers(0, 256, (700, 150, 3), np.uint8)
    files = [*map(_photo, range(4)), *(sample(name).data for name in FIXED), oriented(6, "PNG").data]
    digest = hashlib.sha256()
    for side, exact, resample in itertools.product((32, 224), (False, True), (2, 3)):
        decoder = Decoder(2**25, 10**6, None if exact else 3 * side)
        images = [*map(decoder.decode, files), *(_whole(noise, transpose) for transpose in (None, *TRANSPOSES))]
        for image in images:
            digest.update(_resized(image, side, exact, resample).astype(np.uint8).tobytes())
    assert (PIXELS_VERSION, digest.hexdigest()[:16]) == PIXELS


@pytest.mark.parametrize("name", [name for name in NAMES if name not in MISREAD_BY_PILLOW])
def test_without_the_deviations_the_rgb_image_is_pillows(name: str) -> None:
    expected = Image.open(io.BytesIO(sample(name).data)).convert("RGB")
    np.testing.assert_array_equal(_decoded(name).pixels, np.asarray(expected))


def test_harmless_keys_change_nothing() -> None:
    base = CONFIGS["base-224"]
    assert Preprocessor.from_config({**base, **HARMLESS}) == Preprocessor.from_config(base)


@pytest.mark.parametrize(("config", "key"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_carried_out_is_refused_by_name(config: dict[str, Any], key: str) -> None:
    with pytest.raises(StartupFault, match=rf"asks for .*{key}") as caught:
        Preprocessor.from_config({**CONFIGS["base-224"], **config})
    assert str(caught.value).isprintable()


def test_a_folder_is_read_and_its_lack_is_told(tmp_path: Path) -> None:
    for problem in (None, "{", "[1", "[1]"):
        if problem:
            (tmp_path / "preprocessor_config.json").write_text(problem)
        with pytest.raises(StartupFault, match=r"has no readable preprocessor_config\.json"):
            Preprocessor.from_pretrained(str(tmp_path))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(CONFIGS["bilinear"]))
    (tmp_path / "processor_config.json").write_text("7")
    with pytest.raises(StartupFault, match=r"has no readable preprocessor_config\.json"):
        Preprocessor.from_pretrained(str(tmp_path))
    (tmp_path / "processor_config.json").unlink()
    assert Preprocessor.from_pretrained(str(tmp_path)) == Preprocessor.from_config(CONFIGS["bilinear"])
