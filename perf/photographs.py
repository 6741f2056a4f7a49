"""Seeded pictures with the statistics of photographs, drawn rather than taken so that they are free to ship.

They follow the "dead leaves" model of natural images (Lee, Mumford and Huang 2001): opaque shapes of all sizes lie on
one another, which gives sharp edges and the spectrum of a photograph, however large the picture. Above them is a smooth
sky, on them texture, to the left they are out of focus; lens, sensor noise and 4:2:0 JPEG are those of a camera.

`python -m perf.photographs` writes the four shipped pictures as perf_analyzer's input data.
"""

import base64
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

Floats = npt.NDArray[np.floating[Any]]

BASE64_JSON = Path(__file__).parent / "data" / "base64.json"
INPUT_NAME = "INPUT_IMAGE"

_SEED = 20240607
_SUPERSAMPLE_BELOW_PIXELS = 1_000_000
# With this density of radii (fractions of the longer side), and the blur of a lens, the power spectrum falls with the
# spatial frequency to the 2.4 to 2.7, which is a photograph's; so many leaves leave hardly any ground between them.
_LEAVES, _LEAST_RADIUS, _LARGEST_RADIUS, _DENSITY_EXPONENT = 50_000, 0.001, 0.2, -2.5
_LENS_BLUR = 0.8  # pixels
_NOISE = 2.8  # standard deviation, of 255


class Shot(NamedTuple):
    """One shipped picture: its size in pixels and its JPEG quality (1 to 95)."""

    width: int
    height: int
    quality: int


SHOTS = (Shot(500, 375, 95), Shot(500, 333, 95), Shot(480, 360, 92), Shot(375, 500, 92))


def render(index: int, width: int, height: int) -> Image.Image:
    """Picture `index` (0 or more), RGB. It keeps its composition at every size and gains detail as it grows."""
    rng = np.random.default_rng([_SEED, index])
    # Small pictures are drawn larger and averaged down, as a camera's pixels average the light that falls on them.
    factor = 2 if width * height < _SUPERSAMPLE_BELOW_PIXELS else 1
    scene = _scene(rng, width * factor, height * factor).reduce(factor)
    return _image(np.asarray(scene) + _sensor_noise(rng, width, height) + 0.5)


def encode_jpeg(image: Image.Image, quality: int) -> bytes:
    """A baseline JPEG of the given quality (1 to 95) with 4:2:0 chroma, as most cameras write."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality, subsampling="4:2:0")
    return buffer.getvalue()


def main() -> None:
    """Write the shipped pictures to `BASE64_JSON`: for each a request of one row, its JPEG as base64 text."""
    jpegs = [encode_jpeg(render(index, shot.width, shot.height), shot.quality) for index, shot in enumerate(SHOTS)]
    requests = [{INPUT_NAME: [base64.b64encode(jpeg).decode("ascii")]} for jpeg in jpegs]
    BASE64_JSON.write_text(json.dumps({"data": requests}, indent=1) + "\n", encoding="ascii")


def _scene(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """What a lens makes of sky and leaves."""
    zenith, horizon, *tints = rng.uniform(70, 220, (8, 1)) + rng.uniform(-40, 40, (8, 3))
    sky = np.linspace(zenith, horizon, height, dtype=np.float32)[:, None].repeat(width, axis=1)
    canvas = _image(sky)
    _scatter_leaves(rng, canvas, np.array(tints))
    textured = _image(np.asarray(canvas) * (0.75 + 0.5 * _fractal_noise(rng, width, height)[..., None]))
    sharp = textured.filter(ImageFilter.GaussianBlur(_LENS_BLUR))
    blurred = sharp.filter(ImageFilter.GaussianBlur(0.004 * max(width, height)))
    in_focus = Image.linear_gradient("L").rotate(90).point([min(255, 2 * level) for level in range(256)])
    return Image.composite(sharp, blurred, in_focus.resize(sharp.size))


def _scatter_leaves(rng: np.random.Generator, canvas: Image.Image, tints: Floats) -> None:
    """Polygons onto `canvas`, but for those too small to be seen."""
    power = _DENSITY_EXPONENT + 1
    radii = rng.uniform(_LARGEST_RADIUS**power, _LEAST_RADIUS**power, _LEAVES) ** (1 / power) * max(canvas.size)
    # The sky is left free, but for what rises into it.
    centres = rng.uniform((0, 0.3), (1, 1.05), (_LEAVES, 2)) * canvas.size
    colours = tints[rng.integers(len(tints), size=_LEAVES)] * rng.uniform(0.6, 1.1, (_LEAVES, 1))
    angles = np.sort(rng.uniform(0, 2 * np.pi, (_LEAVES, 7)), axis=1)
    corners = np.stack([np.cos(angles), np.sin(angles)], axis=-1) * radii[:, None, None] + centres[:, None]
    pen = ImageDraw.Draw(canvas)
    for index in np.flatnonzero(radii > 0.5):
        pen.polygon(corners[index].ravel().tolist(), tuple(np.clip(colours[index], 0, 255).astype(int).tolist()))


def _fractal_noise(rng: np.random.Generator, width: int, height: int) -> Floats:
    """Noise (height, width), 0 to 1: octaves from a quarter of the picture down to a pixel, each a little weaker.

    Exactly one number is drawn from `rng`, so what is drawn afterwards is the same at every size.
    """
    octaves = np.random.default_rng(rng.integers(1 << 31))
    total, weights, cells, weight = np.zeros((height, width), np.float32), 0.0, 4, 1.0
    while cells <= max(width, height):
        grid = Image.fromarray(octaves.random((cells, cells), dtype=np.float32))
        total += weight * np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC))
        weights, cells, weight = weights + weight, cells * 2, weight * 0.8
    return total / weights


def _sensor_noise(rng: np.random.Generator, width: int, height: int) -> Floats:
    """Noise (height, width, 3): grain in every pixel, and colour in coarser blotches, as demosaicing leaves it."""
    grain = rng.standard_normal((height, width, 1), dtype=np.float32)
    blotches = rng.standard_normal((height // 2 + 1, width // 2 + 1, 3), dtype=np.float32)
    noise: Floats = _NOISE * (grain + 0.8 * blotches.repeat(2, axis=0).repeat(2, axis=1)[:height, :width])
    return noise


def _image(pixels: Floats) -> Image.Image:
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


if __name__ == "__main__":
    main()
