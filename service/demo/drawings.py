"""Captioned drawings of one coloured shape each: the data behind the embedded checkpoint.

`python -m service.demo.drawings red circle > drawing.jpg` draws one.
"""

import argparse
import sys
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Rgb = npt.NDArray[np.float64]
Points = npt.NDArray[np.float64]

# Saturated enough to stay apart under JPEG and jitter. Six of the ten turn into another colour when red and blue
# are swapped, so a service that mixes up its channels cannot go unnoticed.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 25, 30),
    "orange": (250, 135, 15),
    "yellow": (245, 225, 35),
    "green": (35, 155, 50),
    "cyan": (40, 215, 230),
    "blue": (30, 60, 220),
    "purple": (120, 30, 165),
    "pink": (250, 135, 200),
    "brown": (115, 65, 25),
    "white": (250, 250, 250),
}
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "cross", "ring")
# Radius of the circle around the shape, as a fraction of the image's short side.
SIZES: dict[str, tuple[float, float]] = {"small": (0.18, 0.22), "large": (0.28, 0.34)}
# Column and row of the shape's centre: 0 is left or top, 1 the middle, 2 right or bottom.
POSITIONS: dict[str, tuple[int, int]] = {
    "at the top": (1, 0),
    "at the left": (0, 1),
    "in the centre": (1, 1),
    "at the right": (2, 1),
    "at the bottom": (1, 2),
}
BACKGROUNDS: tuple[str, ...] = ("plain", "gradient", "stripes", "checks", "noise")

_SIDES = (96, 256)  # pixels, shortest and longest side of a drawing
_SUPERSAMPLING = 3  # the shape is drawn this much larger and averaged down, which smooths its edge
_LEAN = 15.0  # degrees a shape may be turned either way; little enough that a square stays far from a diamond
_CONTRAST = 130.0  # least RGB distance between the shape's colour and the background
_RING_HOLE = 0.58  # radius of a ring's hole, as a fraction of the ring's


@dataclass(frozen=True)
class Drawing:
    """One drawing, an RGB image of 8 bits a channel, and what it shows.

    `caption` names the colour, shape, size and position; each of these is also given by itself, as a member of
    `COLOURS`, `SHAPES`, `SIZES` and `POSITIONS`.
    """

    image: Image.Image
    caption: str
    colour: str
    shape: str
    size: str
    position: str


def describe(colour: str, shape: str, size: str | None = None, position: str | None = None) -> str:
    """Caption in lower case, such as "a small red circle at the top"; what is None is left out."""
    words = " ".join(word for word in (size, colour, shape, position) if word)
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def draw(rng: np.random.Generator, colour: str | None = None, shape: str | None = None) -> Drawing:
    """Draw one shape; whatever is not given is drawn from `rng`, and so are the background and the jitter.

    The image is RGB, 96 to 256 pixels a side, its sides less than a fifth apart. Equal generators give equal
    drawings.
    """
    colour = colour or str(rng.choice(list(COLOURS)))
    shape = shape or str(rng.choice(SHAPES))
    size, position = str(rng.choice(list(SIZES))), str(rng.choice(list(POSITIONS)))
    width = int(rng.integers(_SIDES[0], _SIDES[1] + 1))
    height = int(np.clip(width * rng.uniform(0.85, 1.18), *_SIDES))
    paint = np.clip(np.array(COLOURS[colour]) + rng.uniform(-14, 14, 3), 0, 255)
    image = _background(rng, width, height, paint)
    mask = _mask(rng, width, height, shape, size, position)
    image.paste(_pixel(paint), (0, 0), mask)
    return Drawing(image, describe(colour, shape, size, position), colour, shape, size, position)


def _pixel(colour: Rgb) -> tuple[int, int, int]:
    red, green, blue = (round(value) for value in colour)
    return red, green, blue


def _mask(rng: np.random.Generator, width: int, height: int, shape: str, size: str, position: str) -> Image.Image:
    """Coverage of each pixel by the shape: an 8-bit greyscale image of width x height."""
    radius = rng.uniform(*SIZES[size])
    # The room to the edge is counted in short sides, so that the whole shape is always in the picture.
    centre = np.array([_centre(rng, place, radius) for place in POSITIONS[position]]) * (width, height)
    points = _turn(_outline(shape), rng.uniform(-_LEAN, _LEAN)) * radius * min(width, height)
    canvas = Image.new("L", (width * _SUPERSAMPLING, height * _SUPERSAMPLING))
    pen = ImageDraw.Draw(canvas)
    pen.polygon([tuple(point) for point in (points + centre) * _SUPERSAMPLING], fill=255)
    if shape == "ring":
        pen.polygon([tuple(point) for point in (points * _RING_HOLE + centre) * _SUPERSAMPLING], fill=0)
    return canvas.reduce(_SUPERSAMPLING)


def _centre(rng: np.random.Generator, place: int, radius: float) -> float:
    """Where the centre lies along one axis, as a fraction of the image's extent."""
    low = rng.uniform(radius + 0.01, 0.36)
    middle = rng.uniform(0.46, 0.54)
    return float((low, middle, 1 - low)[place])


def _turn(points: Points, degrees: float) -> Points:
    sine, cosine = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
    turned: Points = points @ np.array([[cosine, sine], [-sine, cosine]])
    return turned


def _outline(shape: str) -> Points:
    """Corners of the shape, float64 [n, 2] as x and y (down), within a circle of radius 1 around 0."""
    if shape in ("circle", "ring"):
        return _polar(48, 1.0)
    if shape == "square":
        return _polar(4, 1.0, start=45.0)
    if shape == "triangle":
        return _polar(3, 1.0)
    if shape == "star":
        return _polar(10, np.tile([1.0, 0.42], 5))
    if shape == "cross":
        return _cross(arm=0.95, half_width=0.3)
    raise ValueError(f"no such shape: {shape!r}; there are {', '.join(SHAPES)}")


def _polar(corners: int, radii: float | Points, start: float = 0.0) -> Points:
    """Corners at equal angles clockwise, the first one `start` degrees from the top."""
    angles = np.radians(start) + np.arange(corners) * 2 * np.pi / corners
    return np.stack([radii * np.sin(angles), -radii * np.cos(angles)], axis=1)


def _cross(arm: float, half_width: float) -> Points:
    quarter = np.array([[-half_width, -arm], [half_width, -arm], [half_width, -half_width]])
    corners: Points = np.concatenate([_turn(quarter, 90.0 * turns) for turns in range(4)])
    return corners


def _background(rng: np.random.Generator, width: int, height: int, paint: Rgb) -> Image.Image:
    """RGB image of width x height that keeps clear of the shape's colour `paint`."""
    base = _other_colour(rng, paint)
    kind = str(rng.choice(BACKGROUNDS))
    if kind == "plain":
        return Image.new("RGB", (width, height), _pixel(base))
    # Patterns stay faint, or checks would be squares in their own right.
    other = np.clip(base + rng.uniform(-30, 30, 3), 0, 255)
    if kind == "noise":
        grain = rng.integers(-24, 25, (height, width, 3), dtype=np.int16)
        pixels = np.clip(base.astype(np.int16) + grain, 0, 255)
    else:
        share = _pattern(rng, kind, width, height)[..., None]
        pixels = base + share * (other - base)
    return Image.fromarray(pixels.astype(np.uint8))


def _other_colour(rng: np.random.Generator, paint: Rgb) -> Rgb:
    """Grey in half of the cases, else any colour, well away from `paint`."""
    while True:
        grey = rng.random() < 0.5
        colour: Rgb = np.full(3, rng.uniform(0, 255)) if grey else rng.uniform(0, 255, 3)
        if np.linalg.norm(colour - paint) >= _CONTRAST:
            return colour


def _pattern(rng: np.random.Generator, kind: str, width: int, height: int) -> Points:
    """Share of the second colour in each pixel, float64 [height, width] from 0 to 1."""
    angle, period = rng.uniform(0, 2 * np.pi), rng.uniform(0.06, 0.2) * min(width, height)
    x, y = np.arange(width)[None, :], np.arange(height)[:, None]
    along = x * np.cos(angle) + y * np.sin(angle)
    across = y * np.cos(angle) - x * np.sin(angle)
    if kind == "gradient":
        share: Points = (along - along.min()) / np.ptp(along)
    elif kind == "stripes":
        share = np.floor(along / period) % 2
    else:
        share = (np.floor(along / period) + np.floor(across / period)) % 2
    return share


def main() -> None:
    """Write one drawing to standard output, as a JPEG."""
    parser = argparse.ArgumentParser(prog="python -m service.demo.drawings", description=__doc__)
    parser.add_argument("colour", choices=COLOURS)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    drawing = draw(np.random.default_rng(arguments.seed), arguments.colour, arguments.shape)
    drawing.image.save(sys.stdout.buffer, "JPEG", quality=90)


if __name__ == "__main__":
    main()
