"""Seeded, photograph-like pictures for load tests, drawn rather than taken so that they are free to ship.

Four kinds of scene take turns: mountains over a lake at dusk, balls on a wooden table, leaves close up, and a city
from above. Each is drawn in linear light and then put through a camera: lens fall-off, a film-like tone curve, sensor
noise in luminance and chroma, and 4:2:0 JPEG. What a decoder and a network see is therefore close to a photograph in
entropy, in tonal range and in its mixture of sharp and soft areas.

`python -m perf.photographs` writes the four shipped pictures as perf_analyzer's input data.

Arrays are float32 and planar unless a docstring says otherwise: a plane is (height, width), a picture is
(3, height, width) in linear light, where 1.0 is about the brightness of a well-lit white wall.
"""

import base64
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.integer[Any]]
Scene = Callable[[np.random.Generator, int, int], Floats]

BASE64_JSON = Path(__file__).parent / "data" / "base64.json"
INPUT_NAME = "INPUT_IMAGE"

_SEED = 20240607
_BAND_PIXELS = 1 << 15
_SUPERSAMPLE_BELOW_PIXELS = 1_000_000


class Shot(NamedTuple):
    """One shipped picture: its `picture` number, its size in pixels and its JPEG quality (1 to 95)."""

    picture: int
    width: int
    height: int
    quality: int


SHOTS = (Shot(0, 500, 375, 95), Shot(1, 500, 333, 95), Shot(2, 480, 360, 92), Shot(3, 375, 500, 92))


def render(index: int, width: int, height: int) -> Image.Image:
    """Return picture `index` (0 or more) as an RGB image of width x height pixels.

    The scene is `index` modulo four and the seed is `index`, so pictures beyond the fourth are new views of the same
    four kinds of scene. A picture keeps its composition at every size and gains detail as it grows.
    """
    scenes: tuple[Scene, ...] = (_dusk, _still_life, _leaves, _city)
    # Small pictures are drawn larger and averaged down, as a camera's pixels average the light that falls on them.
    factor = 2 if width * height < _SUPERSAMPLE_BELOW_PIXELS else 1
    light = scenes[index % len(scenes)](np.random.default_rng([_SEED, index]), width * factor, height * factor)
    if factor > 1:
        light = light.reshape(3, height, factor, width, factor).mean(axis=(2, 4))
    return _develop(light, np.random.default_rng([_SEED, index, 1]))


def encode_jpeg(image: Image.Image, quality: int) -> bytes:
    """Return `image` as a baseline JPEG of the given quality (1 to 95) with 4:2:0 chroma, as most cameras write."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality, subsampling="4:2:0")
    return buffer.getvalue()


def photographs() -> list[bytes]:
    """Return the shipped pictures as JPEG bytes, in the order of `SHOTS`."""
    return [encode_jpeg(render(shot.picture, shot.width, shot.height), shot.quality) for shot in SHOTS]


def input_data(jpegs: list[bytes]) -> dict[str, list[dict[str, list[str]]]]:
    """Return perf_analyzer's input data: one request of one row, holding the base64 text of one JPEG, per picture."""
    return {"data": [{INPUT_NAME: [base64.b64encode(jpeg).decode("ascii")]} for jpeg in jpegs]}


def main() -> None:
    """Write the shipped pictures to `BASE64_JSON`."""
    BASE64_JSON.parent.mkdir(parents=True, exist_ok=True)
    BASE64_JSON.write_text(json.dumps(input_data(photographs()), indent=1) + "\n", encoding="ascii")


# ---------------------------------------------------------------------------------------------------------------------
# The camera
# ---------------------------------------------------------------------------------------------------------------------


def _develop(light: Floats, rng: np.random.Generator) -> Image.Image:
    """Return linear light (3, height, width) as the RGB image a camera makes of it."""
    _, height, width = light.shape
    pixels = np.empty((height, width, 3), np.uint8)
    blotches = rng.standard_normal((2, height // 2 + 1, width // 2 + 1), dtype=np.float32)
    for rows in _bands(height, width):
        toned = _tone(light[:, rows] * _vignette(height, width, rows))
        grainy = toned + _sensor_noise(toned, blotches, rows, rng)
        pixels[rows] = np.clip(grainy * 255 + 0.5, 0, 255).astype(np.uint8).transpose(1, 2, 0)
    return Image.fromarray(pixels)


def _bands(height: int, width: int) -> Iterator[slice]:
    """Yield slices of rows small enough that a band's temporaries stay in the processor's cache."""
    step = max(1, _BAND_PIXELS // width)
    for top in range(0, height, step):
        yield slice(top, min(top + step, height))


def _vignette(height: int, width: int, rows: slice) -> Floats:
    """Return the lens's fall-off towards the corners (band height, width): the cos^4 law of a normal lens."""
    x = (np.arange(width, dtype=np.float32) + 0.5 - width / 2) / max(height, width)
    y = (np.arange(rows.start, rows.stop, dtype=np.float32) + 0.5 - height / 2) / max(height, width)
    squared: Floats = 1 / (1 + 0.7 * (x**2 + y[:, None] ** 2))
    return squared**2


def _tone(light: Floats) -> Floats:
    """Return display values in 0 to 1: a film-like shoulder and toe, then display gamma."""
    # Film and sensors never see a pure colour: a little of each channel leaks into the others.
    light = np.maximum(0.74 * light + 0.10 * light.mean(axis=0), 0)
    curve = light * (2.51 * light + 0.03) / (light * (2.43 * light + 0.59) + 0.14)
    toned: Floats = np.clip(curve, 0, 1) ** np.float32(1 / 2.2)
    return toned


def _sensor_noise(toned: Floats, blotches: Floats, rows: slice, rng: np.random.Generator) -> Floats:
    """Return noise (3, band height, width) for display values `toned`: grain per pixel, chroma in coarser blotches.

    Shadows are noisier than highlights once gamma has stretched them. Chroma noise is coarser because demosaicing
    spreads it over neighbouring pixels.
    """
    height, width = toned.shape[1:]
    strength = 0.013 * (1.25 - 0.75 * toned[1])
    grain = rng.standard_normal((height, width), dtype=np.float32) * strength
    row = np.arange(rows.start, rows.stop) // 2
    chroma = blotches[:, row[:, None], np.arange(width) // 2] * (0.8 * strength)
    noise: Floats = np.stack([grain + chroma[0], grain - 0.4 * (chroma[0] + chroma[1]), grain + chroma[1]])
    return noise


def _focus(light: Floats, blur: Floats, radius: float) -> Floats:
    """Put `light` out of focus, in place, and return it: `blur` (height, width) is 0 where sharp, 1 at `radius` pixels.

    A blend of a few uniformly blurred copies, which costs the same whatever the radius.
    """
    for share in (0.25, 0.5, 1.0):
        weight = np.clip((blur - share / 2) / (share / 2), 0, 1)
        for plane in light:
            plane += weight * (_soften(plane, radius * share) - plane)
    return light


def _soften(plane: Floats, radius: float) -> Floats:
    """Return `plane` blurred by about `radius` pixels: averaged down to a coarse grid and smoothly back up."""
    height, width = plane.shape
    coarse = (max(2, round(width / max(radius, 1))), max(2, round(height / max(radius, 1))))
    small = Image.fromarray(plane.astype(np.float32)).resize(coarse, Image.Resampling.HAMMING)
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


# ---------------------------------------------------------------------------------------------------------------------
# Textures and small mathematics
# ---------------------------------------------------------------------------------------------------------------------


def _fractal(
    rng: np.random.Generator, height: int, width: int, cells: tuple[int, int], gain: float = 0.5, ridged: bool = False
) -> Floats:
    """Return fractal noise (height, width), 0 to 1, whose coarsest features span 1/cells of the (height, width).

    Octaves are added, each `gain` times as strong, until they reach the size of a pixel. Exactly one number is drawn
    from `rng`, so what is drawn afterwards is the same at every size. `ridged` folds the noise into sharp crests.
    """
    octave_rng = np.random.default_rng(rng.integers(1 << 31))
    total = np.zeros((height, width), np.float32)
    weight, strength = 0.0, 1.0
    rows, columns = cells
    while rows <= height or columns <= width:
        grid = octave_rng.random((rows + 1, columns + 1), dtype=np.float32)
        octave = np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))
        total += strength * (1 - np.abs(2 * octave - 1) if ridged else octave)
        weight += strength
        strength, rows, columns = strength * gain, rows * 2, columns * 2
    return total / weight


def _smoothstep(low: float, high: float, value: Floats) -> Floats:
    """Return 0 below `low`, 1 above `high` and a smooth rise between."""
    share = np.clip((value - low) / (high - low), 0, 1)
    smooth: Floats = share * share * (3 - 2 * share)
    return smooth


def _mix(first: Floats, second: Floats, share: Floats) -> Floats:
    """Return `first` where `share` is 0, `second` where it is 1."""
    mixed: Floats = first + share * (second - first)
    return mixed


def _rgb(red: float, green: float, blue: float) -> Floats:
    """Return one colour as a picture of one pixel (3, 1, 1)."""
    return np.array([red, green, blue], np.float32).reshape(3, 1, 1)


def _point_rgb(red: float, green: float, blue: float) -> Floats:
    """Return one colour, or one vector, for a list of points (3, 1)."""
    return np.array([[red], [green], [blue]], np.float32)


def _dot(first: Floats, second: Floats) -> Floats:
    """Return the dot product over the leading axis of three."""
    product: Floats = first[0] * second[0] + first[1] * second[1] + first[2] * second[2]
    return product


def _unit(vectors: Floats) -> Floats:
    """Return vectors (3, ...) at length one."""
    scaled: Floats = vectors / np.sqrt(_dot(vectors, vectors))
    return scaled


def _sample(texture: Floats, column: Floats, row: Floats) -> Floats:
    """Return `texture` (..., height, width) read at fractional texels, mirrored at its edges so that no seam shows."""
    height, width = texture.shape[-2:]
    flat = texture.reshape(*texture.shape[:-2], height * width)
    column, row = _mirrored(column, width), _mirrored(row, height)
    x0, y0 = column.astype(np.int32), row.astype(np.int32)
    across, down = column - x0, row - y0
    x1, y1 = np.minimum(x0 + 1, width - 1), np.minimum(y0 + 1, height - 1) * width
    y0 = y0 * width
    upper = _mix(flat[..., y0 + x0], flat[..., y0 + x1], across)
    lower = _mix(flat[..., y1 + x0], flat[..., y1 + x1], across)
    return _mix(upper, lower, down)


def _mirrored(position: Floats, length: int) -> Floats:
    """Return `position` folded back and forth into 0 to length - 1."""
    period = 2 * (length - 1)
    folded: Floats = np.abs(position - period * np.floor(position / period + 0.5))
    return folded


def _shadow_ceiling(heights: Floats, towards_light: tuple[float, float], drop: float, doublings: int) -> Floats:
    """Return, for each texel of a height map (rows, columns), the height below which a point is in shadow.

    One step goes `towards_light` texels (rows, columns), and the light falls by `drop` over it. Each pass doubles the
    distance looked at, so 2**doublings steps cost only `doublings` shifts of the map.
    """
    ceiling = heights
    for power in range(doublings):
        steps = 1 << power
        shift = (-round(towards_light[0] * steps), -round(towards_light[1] * steps))
        ceiling = np.maximum(ceiling, np.roll(ceiling, shift, axis=(0, 1)) - drop * steps)
    return ceiling


def _view(width: int, height: int, horizon: float, span: float) -> tuple[Floats, Floats]:
    """Return slopes (1, width) rightwards and (height, 1) upwards of the rays through the pixels.

    `span` is the view's width at distance one, and `horizon` the share of the picture above eye level. The film is
    parallel to what it looks at, as in a shift lens, so that uprights stay upright.
    """
    right = (np.arange(width, dtype=np.float32) + 0.5 - width / 2) * (span / width)
    up = (horizon * height - np.arange(height, dtype=np.float32) - 0.5) * (span / width)
    return right[None, :], up[:, None]


# ---------------------------------------------------------------------------------------------------------------------
# Scene 0: mountains over a lake at dusk
# ---------------------------------------------------------------------------------------------------------------------

_LAND_SPAN = 20.0
_EYE_ABOVE_WATER = 0.22
_SUNSET = (-0.22, 0.10)


def _dusk(rng: np.random.Generator, width: int, height: int) -> Floats:
    """Return mountains beyond a lake under an evening sky, as linear light (3, height, width)."""
    right, up = _view(width, height, horizon=0.60, span=1.3)
    land = _land(rng, int(np.clip(2 * width, 1024, 3072)))
    colours = _land_colours(rng, land)
    size = int(np.clip(width, 512, 2048))
    clouds = _fractal(rng, size, size, (14, 18), gain=0.56)
    waves = _fractal(rng, size, size, (24, 12), gain=0.72) - 0.5
    detail = 0.6 + 0.8 * _fractal(rng, height, width, (24, 32), gain=0.8)
    depth = _march_land(land, right, up)
    light = np.empty((3, height, width), np.float32)
    for rows in _bands(height, width):
        sky = _dusk_sky(clouds, right, up[rows])
        ground = _dusk_ground(colours, depth[rows], right, up[rows], detail[rows])
        light[:, rows] = np.where(np.isfinite(depth[rows]), ground, sky)
    _flood(light, waves, depth, right, up)
    return light


def _dusk_ground(colours: Floats, depth: Floats, right: Floats, up: Floats, detail: Floats) -> Floats:
    """Return the ground's light (3, ...) at each pixel's `depth`, with the haze of the air before it."""
    size = colours.shape[-1]
    reach = np.minimum(depth, _LAND_SPAN)
    column, row = (right * reach / _LAND_SPAN + 0.5) * size, reach / _LAND_SPAN * size
    ground = _sample(colours, column, row) * detail
    return _mix(ground, _dusk_haze(right, up), 1 - np.exp(-np.maximum(reach - 3, 0) * 0.06))


def _land(rng: np.random.Generator, size: int) -> Floats:
    """Return heights (size, size) of the ground; rows go away from the camera, and what is below 0 is under water."""
    crests = _fractal(rng, size, size, (5, 5), gain=0.47, ridged=True)
    hills = _fractal(rng, size, size, (6, 6))
    z, x = np.mgrid[0:size, 0:size].astype(np.float32) * np.float32(_LAND_SPAN / size)
    # The shore bends towards the camera at both sides, which frames the lake.
    inland = z + 0.55 * np.hypot(x - _LAND_SPAN / 2, 1.2) + 3.0 * (hills - 0.5)
    rise = _smoothstep(3.6, 10.5, inland)
    heights: Floats = rise * (3.7 * crests**1.9 - 0.25) + 0.35 * (hills - 0.5) * _smoothstep(3.0, 5, inland)
    return heights - 0.12 + 0.14 * _smoothstep(3.2, 4.4, inland)


def _land_colours(rng: np.random.Generator, land: Floats) -> Floats:
    """Return the lit colour (3, size, size) of the ground: forest, rock and snow in low sun and blue skylight."""
    size = land.shape[0]
    texel = _LAND_SPAN / size
    slope_z, slope_x = np.gradient(land, texel)
    normal = _unit(np.stack([-slope_x, np.ones_like(land), -slope_z]))
    sun = _unit(_rgb(-0.72, 0.40, -0.30))
    ceiling = _shadow_ceiling(land, (-0.38, -0.92), 0.5 * texel, int(np.log2(size)) - 2)
    sunlight = np.clip(_dot(normal, sun), 0, 1) * (1 - _smoothstep(0.0, 0.05, ceiling - land))
    speckle = _fractal(rng, size, size, (64, 64), gain=0.85)
    rock = _rgb(0.34, 0.29, 0.26) * (0.5 + speckle)
    forest = _rgb(0.07, 0.10, 0.045) * (0.2 + 1.6 * speckle)
    snowy = _smoothstep(0.9, 1.35, land + 1.2 * (speckle - 0.5)) * _smoothstep(0.45, 0.68, normal[1])
    wooded = (1 - _smoothstep(0.45, 0.95, land + 0.9 * (speckle - 0.5))) * _smoothstep(0.5, 0.75, normal[1])
    ground = _mix(_mix(rock, forest, wooded), _rgb(0.85, 0.86, 0.9), snowy)
    lit: Floats = ground * (_rgb(1.55, 0.72, 0.36) * sunlight + _rgb(0.13, 0.17, 0.30) * (0.4 + 0.6 * normal[1]))
    return lit


def _march_land(land: Floats, right: Floats, up: Floats) -> Floats:
    """Return the depth (height, width) of the land or water each ray meets, infinite in the sky.

    Along each column of the picture, the steepest upward slope met so far only grows with depth, so the depth at
    which it passes a pixel's own slope is where that pixel's ray lands.
    """
    size = land.shape[0]
    depths = np.geomspace(0.4, 15.0, 900).astype(np.float32)[:, None]
    along = _sample(land, (right * depths / _LAND_SPAN + 0.5) * size, depths / _LAND_SPAN * size + 0 * right)
    slopes = np.maximum.accumulate((np.maximum(along, 0) - _EYE_ABOVE_WATER) / depths, axis=0)
    wanted = up[::-1, 0]
    found = [np.interp(wanted, slopes[:, i], depths[:, 0], right=np.inf)[::-1] for i in range(right.size)]
    depth: Floats = np.stack(found, axis=1).astype(np.float32)
    return depth


def _dusk_haze(right: Floats, up: Floats) -> Floats:
    """Return the colour of far air, warmer towards the sunset."""
    glow = np.exp(-(((right - _SUNSET[0]) / 0.45) ** 2) - (up / 0.5) ** 2)
    return _mix(_rgb(0.20, 0.19, 0.30), _rgb(0.70, 0.34, 0.20), glow)


def _dusk_sky(clouds: Floats, right: Floats, up: Floats) -> Floats:
    """Return the sky: orange at the horizon to blue overhead, with clouds lit from below by the sunset."""
    height = np.maximum(up, 0)
    clear = _mix(_rgb(0.05, 0.10, 0.25), _rgb(0.33, 0.28, 0.38), np.exp(-height / 0.20))
    away = ((right - _SUNSET[0]) / 0.45) ** 2 + ((up - _SUNSET[1]) / 0.17) ** 2
    clear = clear + _rgb(1.25, 0.56, 0.18) * np.exp(-away)
    size = clouds.shape[-1]
    distance = 1 / (height + 0.10)
    column, row = (right * distance * 0.07 + 0.5) * size, distance * (size * 0.085)
    density = _smoothstep(0.47, 0.66, _sample(clouds, column, row))
    below = _smoothstep(0.44, 0.70, _sample(clouds, column - size * 0.012, row + size * 0.012))
    lit = _rgb(1.15, 0.52, 0.27) * (0.30 + 0.65 * np.exp(-away / 5)) * (1.15 - below) + _rgb(0.10, 0.10, 0.16)
    return _mix(clear, lit, density * 0.92 * _smoothstep(0.0, 0.08, up))


def _flood(light: Floats, waves: Floats, depth: Floats, right: Floats, up: Floats) -> None:
    """Make the water in the picture `light` mirror what stands above the horizon."""
    height, width = depth.shape
    size = waves.shape[-1]
    horizon = int(np.argmax(up[:, 0] < 0))
    for band in _bands(height - horizon, width):
        rows = slice(band.start + horizon, band.stop + horizon)
        below = up[rows]
        distance = _EYE_ABOVE_WATER / np.maximum(-below, 0.004)
        row = np.log(distance) * (size * 0.8) + 0 * right
        ripple = _sample(waves, right * distance * (size * 0.22), row)
        mirrored = 2 * horizon - 1 - np.arange(rows.start, rows.stop)[:, None]
        mirrored = mirrored - ripple * (0.16 * height) * _smoothstep(0, 0.25, -below)
        source = np.clip(mirrored, 0, horizon - 1).astype(np.int32)
        sideways = np.clip(np.arange(width) + ripple * 0.03 * width, 0, width - 1).astype(np.int32)
        mirror = light[:, source, sideways] * (0.28 + 0.62 * np.exp(below / 0.12)) + _rgb(0.008, 0.022, 0.030)
        water = _EYE_ABOVE_WATER + below * depth[rows] < 0.004
        light[:, rows] = np.where(water, mirror, light[:, rows])


# ---------------------------------------------------------------------------------------------------------------------
# Scene 1: balls on a wooden table
# ---------------------------------------------------------------------------------------------------------------------


class _Balls(NamedTuple):
    """Balls on the table y = 0: centres (n, 3), radii (n,), colours (n, 3), mirror strengths and bumpiness (n,)."""

    centres: Floats
    radii: Floats
    colours: Floats
    mirror: Floats
    bumps: Floats


class _Studio(NamedTuple):
    """What stands in the still life: balls, and pictures of the wood, of a fine relief and of the room behind."""

    balls: _Balls
    wood: Floats
    relief: Floats
    room: Floats


_PAINTS = (
    ((0.75, 0.25, 0.03), 0.04, 1.0),
    ((0.55, 0.03, 0.03), 0.05, 0.2),
    ((0.75, 0.72, 0.66), 0.70, 0.0),
    ((0.10, 0.25, 0.05), 0.04, 0.5),
    ((0.04, 0.10, 0.35), 0.06, 0.1),
    ((0.80, 0.62, 0.10), 0.04, 0.7),
    ((0.72, 0.68, 0.60), 0.03, 0.6),
    ((0.80, 0.52, 0.20), 0.55, 0.1),
)
_KEY_LIGHT = (-0.62, 0.68, -0.40)


def _still_life(rng: np.random.Generator, width: int, height: int) -> Floats:
    """Return glossy and matt balls on a wooden table by a window, as linear light (3, height, width)."""
    size = int(np.clip(2 * width, 1024, 2048))
    studio = _Studio(_balls(rng), _wood(rng, size), _relief(rng, size), _room(rng, 512))
    right, up = _view(width, height, horizon=0.5, span=0.92)
    light = np.empty((3, height, width), np.float32)
    depth = np.empty((height, width), np.float32)
    eye = _point_rgb(0.0, 1.45, -4.6)
    for rows in _bands(height, width):
        rays = np.stack(np.broadcast_arrays(right, up[rows] - 0.25, 1 + 0.25 * up[rows])).reshape(3, -1)
        seen, distance = _trace(studio, eye, _unit(rays), bounces=1)
        light[:, rows], depth[rows] = seen.reshape(3, -1, width), distance.reshape(-1, width)
    blur = np.clip(np.abs(1 / depth - 1 / 4.3) * 9 - 0.25, 0, 1)
    return _focus(light, blur, radius=width * 0.011)


def _balls(rng: np.random.Generator) -> _Balls:
    """Return balls that touch the table but not one another, largest first."""
    placed: list[tuple[float, float, float]] = []
    for radius in (0.52, 0.46, 0.42, 0.36, 0.33, 0.28, 0.25, 0.22, 0.20, 0.17, 0.15, 0.13):
        for _ in range(60):
            z = rng.uniform(-1.5, 2.6)
            x = rng.uniform(-0.40, 0.40) * (z + 4.6)
            if all(np.hypot(x - px, z - pz) > radius + pr for px, pz, pr in placed):
                placed.append((x, z, radius))
                break
    found = np.array(placed, np.float32)
    paint = [_PAINTS[i % len(_PAINTS)] for i in rng.permutation(len(placed))]
    colours = np.array([p[0] for p in paint], np.float32)
    mirror, bumps = (np.array([p[i] for p in paint], np.float32) for i in (1, 2))
    return _Balls(found[:, [0, 2, 1]], found[:, 2], colours, mirror, bumps)


def _wood(rng: np.random.Generator, size: int) -> Floats:
    """Return planks (3, size, size) with rings, long fibres and dark joints; the grain runs along the rows."""
    fibres = _fractal(rng, size, size, (96, 3), gain=0.75)
    bends = _fractal(rng, size, size, (5, 2))
    across = np.arange(size, dtype=np.float32)[:, None] * (6 / size)
    plank = np.floor(across)
    offsets = rng.random(6, dtype=np.float32)[plank.astype(np.int32)]
    rings = 0.5 + 0.5 * np.sin(2 * np.pi * (9 * bends + 4 * offsets + 3 * across))
    tone = 0.55 * fibres + 0.25 * rings + 0.35 * offsets
    joint = _smoothstep(0.0, 0.02, np.minimum(across - plank, plank + 1 - across))
    return _mix(_rgb(0.10, 0.045, 0.02), _rgb(0.62, 0.36, 0.19), np.clip(tone, 0, 1.2)) * (0.25 + 0.75 * joint)


def _relief(rng: np.random.Generator, size: int) -> Floats:
    """Return a fine surface (3, size, size): its shade about 1, and its slope along columns and along rows."""
    surface = _fractal(rng, size, size, (90, 90), gain=0.6)
    rows, columns = np.gradient(surface, 1 / size)
    return np.stack([0.45 + 1.1 * surface, columns * 0.007, rows * 0.007])


def _room(rng: np.random.Generator, size: int) -> Floats:
    """Return the room behind the table (3, size, size) over slopes -1 to 1: a dim wall and lamps out of focus."""
    x, y = np.meshgrid(np.linspace(-1, 1, size, dtype=np.float32), np.linspace(-1, 1, size, dtype=np.float32))
    room = _rgb(0.07, 0.08, 0.10) * (1.2 - 0.5 * x) + _rgb(0.03, 0.015, 0.005)
    places = rng.uniform((-0.7, -0.05, 0.02), (0.7, 0.5, 0.055), (40, 3))
    looks = rng.uniform((0.15, 0.05), (0.9, 0.6), (40, 2))
    for (right, up, radius), (warmth, strength) in zip(places.tolist(), looks.tolist(), strict=True):
        inside = _smoothstep(1.06, 0.94, np.hypot(x - right, y - up) / radius)
        room += _rgb(1, warmth, warmth**2) * (strength * inside)
    return room


def _trace(studio: _Studio, origin: Floats, rays: Floats, bounces: int) -> tuple[Floats, Floats]:
    """Return the light (3, n) and distance (n,) that unit `rays` (3, n) from `origin` (3, n or 1) meet."""
    distance, hit = _nearest(studio.balls, origin, rays)
    light = _backdrop(studio, rays)
    origin = np.broadcast_to(origin, rays.shape)
    point = origin + rays * distance
    table = hit == len(studio.balls.radii)
    light[:, table] = _table_light(studio, point[:, table])
    ball = (hit >= 0) & ~table
    if ball.any():
        light[:, ball] = _ball_light(studio, point[:, ball], rays[:, ball], hit[ball], bounces)
    return light, distance


def _table_light(studio: _Studio, point: Floats) -> Floats:
    """Return the light (3, n) from points (3, n) of the table."""
    size = studio.wood.shape[-1]
    wood = _sample(studio.wood, (point[0] / 4 + 0.4) * size, point[2] / 4 * size)
    up = np.broadcast_to(_point_rgb(0, 1, 0), point.shape)
    return wood * _lighting(studio.balls, point, up)


def _ball_light(studio: _Studio, point: Floats, rays: Floats, which: Integers, bounces: int) -> Floats:
    """Return the light (3, n) from points (3, n) of the balls `which` (n,), seen along `rays` (3, n)."""
    balls = studio.balls
    normal = (point - balls.centres.T[:, which]) / balls.radii[which]
    relief, bumps = _sample(studio.relief, *_ball_texels(studio, normal, which)), balls.bumps[which]
    normal = _unit(normal + np.stack([relief[1] * bumps, relief[2] * bumps, 0 * bumps]))
    colour = balls.colours.T[:, which] * (1 + (relief[0] - 1) * np.sqrt(bumps))
    mirror = balls.mirror[which]
    light: Floats = colour * (1 - mirror) * _lighting(balls, point, normal)
    if not bounces:
        return light
    facing = np.clip(-_dot(rays, normal), 0, 1)
    seen, _ = _trace(studio, point + normal * 2e-3, _unit(rays + 2 * facing * normal), bounces - 1)
    # Polished metal tints what it mirrors; glaze does not. Both mirror more at grazing angles.
    tint = np.where(mirror > 0.3, 0.3 + 0.9 * colour, 1)
    light += seen * tint * (mirror + (1 - mirror) * 0.6 * (1 - facing) ** 5)
    return light


def _nearest(balls: _Balls, origin: Floats, rays: Floats) -> tuple[Floats, Integers]:
    """Return distance to and index of the nearest thing (n,): a ball, len(radii) for the table, -1 for the room."""
    distance = -origin[1] / np.minimum(rays[1], -1e-4)
    hit = np.where(distance < 14, len(balls.radii), -1)
    distance = np.where(distance < 14, distance, 50)
    for i, (centre, radius) in enumerate(zip(balls.centres, balls.radii, strict=True)):
        to_centre = centre[:, None] - origin
        along = _dot(to_centre, rays)
        half_chord = radius**2 - _dot(to_centre, to_centre) + along**2
        reach = along - np.sqrt(np.maximum(half_chord, 0))
        closer = (half_chord > 0) & (reach > 1e-3) & (reach < distance)
        distance, hit = np.where(closer, reach, distance), np.where(closer, i, hit)
    return distance, hit


def _ball_texels(studio: _Studio, normal: Floats, which: Integers) -> tuple[Floats, Floats]:
    """Return where on the relief a ball's surface lies, at the same grain whatever the ball's size."""
    size = studio.relief.shape[-1]
    scale = size * 0.35 * studio.balls.radii[which]
    return normal[0] * scale + 0.5 * size + which * 19.0, normal[1] * scale + 0.5 * size + which * 11.0


def _lighting(balls: _Balls, point: Floats, normal: Floats) -> Floats:
    """Return the light (3, ...) falling on surfaces: a large window with soft shadows, and a dim room."""
    window = _unit(np.array(_KEY_LIGHT, np.float32))
    seen, open_air = np.ones_like(point[0]), np.ones_like(point[0])
    for centre, radius in zip(balls.centres, balls.radii, strict=True):
        to_centre = centre[:, None] - point
        squared = _dot(to_centre, to_centre)
        along = _dot(to_centre, window)
        aside = np.sqrt(np.maximum(squared - along**2, 0))
        penumbra = np.maximum(0.22 * along, 1e-3)
        share = np.clip((aside - radius) / (2 * penumbra) + 0.5, 0, 1)
        seen *= np.where(along > 0, share * share * (3 - 2 * share), 1)
        facing = np.maximum(_dot(normal, to_centre), 0) / np.sqrt(squared)
        open_air *= 1 - np.minimum(facing * radius**2 / squared, 0.9)
    key = np.clip(_dot(normal, window), 0, 1) * seen
    room = open_air * (0.65 + 0.35 * normal[1])
    falling: Floats = _point_rgb(1.45, 1.3, 1.08) * key + _point_rgb(0.15, 0.18, 0.24) * room
    return falling


def _backdrop(studio: _Studio, rays: Floats) -> Floats:
    """Return the light (3, n) from beyond the table: the room before the camera, and the bright window behind it."""
    size = studio.room.shape[-1]
    ahead = np.maximum(rays[2], 0.2)
    light = _sample(studio.room, (rays[0] / ahead + 1) * (size / 2), (rays[1] / ahead + 1) * (size / 2))
    window = _unit(_point_rgb(*_KEY_LIGHT))
    towards = _dot(rays, window)
    x, y = np.abs(rays[0] - window[0] * towards), rays[1] - window[1] * towards
    pane = _smoothstep(0.30, 0.27, x) * _smoothstep(0.36, 0.33, np.abs(y))
    bars = _smoothstep(0.012, 0.022, x) * _smoothstep(0.012, 0.022, np.abs(y - 0.08))
    return light + _point_rgb(5.5, 5.8, 6.2) * (pane * bars * (towards > 0.75))


# ---------------------------------------------------------------------------------------------------------------------
# Scene 2: leaves close up
# ---------------------------------------------------------------------------------------------------------------------

_HEDGE_PIXELS = 1600
_LEAF_TINTS = (
    (0.36, 0.46, 0.20),
    (0.28, 0.39, 0.17),
    (0.45, 0.54, 0.25),
    (0.22, 0.32, 0.17),
    (0.55, 0.57, 0.28),
    (0.31, 0.42, 0.26),
    (0.58, 0.44, 0.24),
    (0.38, 0.45, 0.18),
)


def _leaves(rng: np.random.Generator, width: int, height: int) -> Floats:
    """Return a hedge of overlapping leaves in dappled sun, as linear light (3, height, width)."""
    span = max(width, height)
    # Pasting costs as many pixels as the leaves overlap, so large pictures enlarge a smaller hedge: at their size
    # a lens resolves no more.
    shrink = max(1.0, span / _HEDGE_PIXELS)
    canvas = _hedge(rng, round(width / shrink), round(height / shrink))
    canvas = canvas.resize((width, height), Image.Resampling.BICUBIC)
    light: Floats = (np.asarray(canvas, np.float32).transpose(2, 0, 1) / 255) ** np.float32(2.2)
    dapple = _smoothstep(0.42, 0.62, _fractal(rng, height, width, (4, 5), gain=0.45))
    light = light * (_rgb(0.50, 0.58, 0.70) + _rgb(2.3, 2.05, 1.5) * dapple)
    texture = 0.72 + 0.56 * _fractal(rng, height, width, (60, 80), gain=0.9)
    x, y = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)
    blur_towards_corners = np.clip((x + 0.2) ** 2 * 0.6 + (y[:, None] - 0.1) ** 2 * 0.5 - 0.25, 0, 1)
    return _focus(light * texture, blur_towards_corners, radius=span * 0.008)


def _hedge(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Return evenly lit leaves as an RGB image; from the back, they grow, brighten and come into focus."""
    span = max(width, height)
    sprites = _leaf_sprites(rng, max(128, span // 5))
    canvas = Image.new("RGB", (width, height), (14, 20, 10))
    for count, length, shade, blur in ((120, 0.15, 0.30, 0.006), (220, 0.14, 0.60, 0.0025), (320, 0.14, 0.95, 0.0)):
        _scatter(rng, canvas, sprites, count, (length * span, shade))
        canvas = canvas.filter(ImageFilter.GaussianBlur(blur * span))
    return canvas


def _leaf_sprites(rng: np.random.Generator, length: int) -> list[Image.Image]:
    """Return RGBA leaves (length x length pixels), each of its own outline and tint, pointing right."""
    return [_leaf(rng, length, np.array(tint, np.float32)) for tint in _LEAF_TINTS for _ in range(2)]


def _leaf(rng: np.random.Generator, length: int, tint: Floats) -> Image.Image:
    """Return one leaf as an RGBA image: a toothed outline, a pale midrib, side veins and mottled, curled blades."""
    mottle = _fractal(rng, length, length, (6, 6), gain=0.7)
    bend, breadth, veins = rng.uniform(-0.12, 0.12), rng.uniform(0.26, 0.40), rng.uniform(8, 12)
    along, across = np.meshgrid(np.linspace(0, 1, length), np.linspace(-0.5, 0.5, length))
    across = across - bend * np.sin(np.pi * along)
    teeth = 0.012 * np.abs(((along * 24 + 0.6 * np.abs(across)) % 1) - 0.5)
    outline = breadth * np.sin(np.pi * np.clip(along, 0, 1) ** 0.8) ** 0.9 * (1.05 - 0.35 * along) - teeth
    alpha = np.clip((outline - np.abs(across)) * length * 0.7, 0, 1)
    stripe = np.abs(((along - 0.9 * np.abs(across)) * veins % 1) - 0.5)
    vein = np.maximum(_smoothstep(0.016, 0.004, np.abs(across)), 0.55 * _smoothstep(0.10, 0.02, stripe))
    pucker = 0.86 + 0.28 * _smoothstep(0.0, 0.45, stripe)
    fold = np.where(across > 0, 0.80, 1.10) + 0.5 * across / max(breadth, 0.1)
    blade = tint * (pucker * fold * (0.65 + 0.7 * mottle))[..., None]
    pale = blade * 1.25 + np.array([0.07, 0.08, 0.03])
    colour = blade + vein[..., None] * (pale - blade)
    pixels = np.concatenate([np.clip(colour, 0, 1), alpha[..., None]], axis=2)
    return Image.fromarray((pixels * 255).astype(np.uint8))


def _scatter(
    rng: np.random.Generator, canvas: Image.Image, sprites: list[Image.Image], count: int, look: tuple[float, float]
) -> None:
    """Paste `count` leaves onto `canvas` at random; `look` is their mean length in pixels and their brightness."""
    places = rng.random((count, 2))
    angles, sizes = rng.uniform(-60, 210, count), rng.uniform(0.6, 1.5, count) * look[0]
    shades, kinds = look[1] * rng.uniform(0.65, 1.2, count), rng.integers(len(sprites), size=count)
    for (x, y), angle, size, shade, kind in zip(places, angles, sizes, shades, kinds, strict=True):
        side = max(4, round(size))
        leaf = sprites[kind].resize((side, side), Image.Resampling.BILINEAR)
        leaf = leaf.rotate(angle, Image.Resampling.BILINEAR, expand=True)
        left, top = round(x * canvas.width - leaf.width / 2), round(y * canvas.height - leaf.height / 2)
        alpha = leaf.getchannel("A")
        # The leaf's soft shadow falls down and to the right on what was pasted before it.
        shadow = alpha.filter(ImageFilter.BoxBlur(side * 0.03)).point([i * 6 // 10 for i in range(256)])
        canvas.paste((4, 8, 3), (left + side // 14, top + side // 9), shadow)
        lit = leaf.convert("RGB").point([min(255, int(i * shade)) for i in range(256)] * 3)
        canvas.paste(lit, (left, top), alpha)


# ---------------------------------------------------------------------------------------------------------------------
# Scene 3: a city from above
# ---------------------------------------------------------------------------------------------------------------------

_CITY_COLUMNS, _CITY_ROWS = 44, 34
_EYE_ABOVE_STREET = 3.1
_TEXELS_PER_BLOCK = 48
_STONES = ((0.50, 0.42, 0.33), (0.34, 0.20, 0.14), (0.55, 0.53, 0.50), (0.22, 0.24, 0.27), (0.62, 0.57, 0.48))
_SKY, _STREET, _FRONT, _SIDE, _ROOF = range(5)


class _Town(NamedTuple):
    """Buildings, one per block: edges left, right, near, far and heights (n,), colours (n, 3), windows (n, 2)."""

    left: Floats
    right: Floats
    near: Floats
    far: Floats
    height: Floats
    colour: Floats
    window: Floats


class _Surfaces(NamedTuple):
    """What each pixel shows: its kind of surface, its building and its depth, each (height, width)."""

    kind: Integers
    building: Integers
    depth: Floats


def _city(rng: np.random.Generator, width: int, height: int) -> Floats:
    """Return streets of tall buildings in afternoon sun, as linear light (3, height, width)."""
    town = _town(rng)
    right, up = _view(width, height, horizon=0.30, span=0.95)
    grime = _fractal(rng, height, width, (9, 7), gain=0.85)
    clouds = _fractal(rng, height, width, (5, 3), gain=0.55)
    noise = rng.random(1 << 16, dtype=np.float32)
    seen = _raster(town, right, up)
    ceiling = _town_ceiling(town)
    light = np.empty((3, height, width), np.float32)
    for rows in _bands(height, width):
        band = _Surfaces(seen.kind[rows], seen.building[rows], seen.depth[rows])
        surface = _city_surface(town, band, right, up[rows], noise) * (0.45 + 1.1 * grime[rows])
        lit = surface * _city_light(band, right, up[rows], ceiling)
        haze = 1 - np.exp(-np.maximum(band.depth - 3, 0) * 0.045)
        air = _city_sky(right, up[rows], clouds[rows])
        light[:, rows] = np.where(band.kind == _SKY, air, _mix(lit, _rgb(0.42, 0.46, 0.54), haze))
    blur = np.clip(np.abs(1 / seen.depth - 1 / 7.0) * 5 - 0.35, 0, 1)
    return _focus(light, blur, radius=width * 0.010)


def _town(rng: np.random.Generator) -> _Town:
    """Return the buildings, farthest first and outermost first, so that each may be painted over the last."""
    row, column = np.mgrid[_CITY_ROWS:0:-1, 0:_CITY_COLUMNS].reshape(2, -1).astype(np.float32)
    column = column - (_CITY_COLUMNS - 1) / 2
    order = np.lexsort((-np.abs(column), -row))
    row, column = row[order], column[order]
    count = row.size
    margins = rng.uniform(0.12, 0.20, (4, count)).astype(np.float32)
    # The blocks nearest the eye are kept low so that one wall does not fill the picture.
    tall = np.exp(rng.normal(0.15, 0.55, count)) * np.exp(-((column / 9) ** 2) - ((row - 11) / 9) ** 2) * 1.7
    heights = np.minimum(tall + rng.uniform(0.25, 0.8, count), 0.55 + 0.42 * row).astype(np.float32)
    colours = np.array(_STONES)[rng.integers(len(_STONES), size=count)] * rng.uniform(0.6, 1.15, (count, 1))
    windows = rng.uniform((0.045, 0.07), (0.09, 0.11), (count, 2)).astype(np.float32)
    left, right = column - 0.5 + margins[0], column + 0.5 - margins[1]
    return _Town(left, right, row + margins[2], row + 1 - margins[3], heights, colours.astype(np.float32), windows)


def _raster(town: _Town, right: Floats, up: Floats) -> _Surfaces:
    """Return the surfaces in view, painting buildings over the street from the farthest to the nearest."""
    height, width = up.size, right.size
    depth = np.broadcast_to(np.where(up < 0, _EYE_ABOVE_STREET / np.maximum(-up, 1e-3), 60), (height, width)).copy()
    depth = np.minimum(depth, 60).astype(np.float32)
    kind = np.where(depth < 60, _STREET, _SKY).astype(np.uint8)
    seen = _Surfaces(kind, np.zeros((height, width), np.int32), depth)
    for i in range(town.height.size):
        _paint_building(town, i, seen, right[0], up[:, 0])
    return seen


def _paint_building(town: _Town, i: int, seen: _Surfaces, right: Floats, up: Floats) -> None:
    """Paint building `i` into `seen`: its roof, the side towards the middle of the picture and its front."""
    near, far, rise = float(town.near[i]), float(town.far[i]), float(town.height[i]) - _EYE_ABOVE_STREET
    left, rightmost = float(town.left[i]), float(town.right[i])
    x0, x1 = np.searchsorted(right, (min(left / near, left / far), max(rightmost / near, rightmost / far)))
    y0, y1 = np.searchsorted(-up, (-max(rise / near, rise / far), _EYE_ABOVE_STREET / near))
    if x0 == x1 or y0 == y1:
        return
    box = slice(int(y0), int(y1)), slice(int(x0), int(x1))
    slope_x, slope_y = right[None, box[1]], up[box[0], None]
    wall = rightmost if rightmost < 0 else left
    side = wall / np.where(np.abs(slope_x) < 1e-6, 1e-6, slope_x)
    roof = rise / np.minimum(slope_y, -1e-6) if rise < 0 else np.full_like(slope_y, np.inf)
    for kind, z in ((_SIDE, side), (_ROOF, roof), (_FRONT, np.full_like(slope_x, near))):
        x, y = slope_x * z, slope_y * z
        inside = (z >= near) & (z <= far) if kind != _FRONT else np.ones_like(z, bool)
        inside = inside & ((x >= left) & (x <= rightmost) | (kind == _SIDE))
        inside = inside & ((y <= rise) & (y >= -_EYE_ABOVE_STREET) | (kind == _ROOF))
        seen.kind[box][inside] = kind
        seen.building[box][inside] = i
        seen.depth[box][inside] = np.broadcast_to(z, inside.shape)[inside]


def _town_ceiling(town: _Town) -> Floats:
    """Return the height below which a point of the town plan is in shadow (rows away from us, columns rightwards)."""
    plan = np.zeros(((_CITY_ROWS + 2) * _TEXELS_PER_BLOCK, (_CITY_COLUMNS + 2) * _TEXELS_PER_BLOCK), np.float32)
    middle = (_CITY_COLUMNS + 2) / 2
    edges = np.stack([town.near, town.far, town.left + middle, town.right + middle], axis=1) * _TEXELS_PER_BLOCK
    for (near, far, left, right), height in zip(np.rint(edges).astype(int).tolist(), town.height, strict=True):
        plan[near:far, left:right] = height
    return _shadow_ceiling(plan, (-0.45, -0.89), 0.95 / _TEXELS_PER_BLOCK, 8)


def _city_light(seen: _Surfaces, right: Floats, up: Floats, ceiling: Floats) -> Floats:
    """Return the light (3, ...) on each surface: sun from the left behind us where unshadowed, and blue skylight."""
    altitude = _EYE_ABOVE_STREET + up * seen.depth
    x, z = right * seen.depth, np.minimum(seen.depth, _CITY_ROWS + 1.5)
    # Look a little outside the wall, or every wall would lie in the shadow of its own building.
    outside = np.where(seen.kind == _SIDE, np.where(x < 0, 0.09, -0.09), 0)
    ahead = np.where(seen.kind == _FRONT, -0.09, 0)
    column = (np.clip(x + outside, -22, 22) + (_CITY_COLUMNS + 2) / 2) * _TEXELS_PER_BLOCK
    shade_below = _sample(ceiling, column, (z + ahead) * _TEXELS_PER_BLOCK)
    lit = _smoothstep(-0.04, 0.03, altitude - shade_below)
    facing_side = np.where(x > 0, 0.62, 0.0)
    facing = np.select([seen.kind == _FRONT, seen.kind == _SIDE], [0.36, facing_side], 0.66)
    open_sky = 0.25 + 0.75 * _smoothstep(-0.6, 1.6, altitude)
    falling: Floats = _rgb(2.1, 1.72, 1.25) * (lit * facing) + _rgb(0.16, 0.21, 0.30) * open_sky
    return falling


def _city_surface(town: _Town, seen: _Surfaces, right: Floats, up: Floats, noise: Floats) -> Floats:
    """Return the colour (3, ...) of each surface: walls with windows, roofs with plant, streets with markings."""
    building, pixel = seen.building, float(right[0, 1] - right[0, 0]) * seen.depth
    x, y = right * seen.depth, _EYE_ABOVE_STREET + up * seen.depth
    along = np.where(seen.kind == _FRONT, x, seen.depth)
    wide, tall = town.window[building, 0], town.window[building, 1]
    column, floor = np.floor(along / wide), np.floor(y / tall)
    random = noise[((building * 7919 + column * 104729 + floor * 1301).astype(np.int64)) % noise.size]
    crisp = np.clip(1.6 - 3.5 * pixel / wide, 0.15, 1)
    opening = _window(along / wide - column, 0.20) * _window(y / tall - floor, 0.24)
    glass = _rgb(0.06, 0.08, 0.10) + _rgb(0.30, 0.38, 0.46) * random**3 + _rgb(0.9, 0.6, 0.25) * (random > 0.95)
    wall = town.colour.T[:, building]
    facade = _mix(wall, glass, opening * crisp)
    block = noise[((np.floor(x * 13) * 131 + np.floor(seen.depth * 13) * 733 + building).astype(np.int64)) % noise.size]
    roof = 0.5 * wall.mean(axis=0) + _rgb(0.10, 0.10, 0.11) + 0.10 * (block > 0.85) - 0.06 * (block < 0.15)
    street = _rgb(0.10, 0.10, 0.105) + 0.35 * ((np.abs(x % 1) < 0.012) & (seen.depth % 0.12 < 0.06))
    return np.select([seen.kind == _STREET, seen.kind == _ROOF], [street, roof], facade)


def _window(share: Floats, margin: float) -> Floats:
    """Return 1 inside a window and 0 on the wall around it, for a position `share` (0 to 1) across its bay."""
    return _smoothstep(margin - 0.06, margin + 0.06, np.minimum(share, 1 - share))


def _city_sky(right: Floats, up: Floats, clouds: Floats) -> Floats:
    """Return a hazy afternoon sky with soft clouds."""
    clear = _mix(_rgb(0.50, 0.52, 0.57), _rgb(0.12, 0.24, 0.50), np.clip(up / 0.34 + 0.1 * right, 0, 1))
    return _mix(clear, _rgb(0.80, 0.78, 0.76), 0.85 * _smoothstep(0.46, 0.64, clouds))


if __name__ == "__main__":
    main()
