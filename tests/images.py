"""Awkward images, made on the spot: every format that is read here, in the forms that trip up naive decoders.

Each is a `Sample`, made by numpy and Pillow from fixed arithmetic, so that every run gets the same picture.
`NAMES` lists them, `sample(name)` makes one (once a process), `oriented(...)` makes one with an EXIF orientation.
"""

import functools
import io
import itertools
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, features

Pixels = npt.NDArray[np.uint8]

# What lossy formats may be off on average, of 255.
_LOSSY = 4.0
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_SAMPLES = {0: 1, 2: 3}  # samples a pixel by colour type


@dataclass(frozen=True)
class Sample:
    """One encoded image and what it shows.

    Attributes:
        data: the encoded bytes.
        format: Pillow's name of the format.
        shown: uint8 `[H, W, 4]`, the RGBA pixels that went in; of several frames the first; 16 bits by their high byte.
        tolerance: how far decoded pixels may be off `shown` on average (of 255); 0 for lossless formats.
    """

    data: bytes
    format: str
    shown: Pixels
    tolerance: float = 0.0

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.shown.shape[1], self.shown.shape[0]

    def over(self, background: tuple[int, int, int] | None) -> npt.NDArray[np.float64]:
        """The expected RGB `[H, W, 3]`: composited on `background`, or without its alpha channel for None."""
        rgb = self.shown[..., :3].astype(np.float64)
        alpha = np.ones(1) if background is None else self.shown[..., 3:] / 255.0
        pixels: npt.NDArray[np.float64] = rgb * alpha + np.array(background or 0.0) * (1 - alpha)
        return pixels


@functools.cache
def sample(name: str) -> Sample:
    """The awkward image of that name, one of `NAMES`."""
    return _MAKERS[name]()


@functools.cache
def oriented(orientation: int, image_format: str = "JPEG") -> Sample:
    """An image (JPEG, PNG, WEBP or TIFF) whose EXIF orientation is 1..8; `shown` is as stored, not turned."""
    stored = picture(72, 40)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    # Each format heeds the one option that means something to it.
    data = encode(Image.fromarray(stored), image_format, exif=exif, quality=95, lossless=True)
    return Sample(data, image_format, _opaque(stored), _LOSSY if image_format == "JPEG" else 0.0)


def picture(width: int, height: int, seed: int = 0) -> Pixels:
    """A picture without any symmetry: uint8 RGB `[height, width, 3]`, smooth waves, a slope and a little noise."""
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    waves = [np.sin(9 * x + c + seed) + np.cos(7 * y * (c + 1)) + 2.0 * x - y for c in range(3)]
    noise = np.random.default_rng(seed).normal(0, 2, (height, width, 3))
    pixels: Pixels = np.clip(110 + 32 * np.stack(waves, axis=-1) + noise, 0, 255).astype(np.uint8)
    return pixels


def encode(image: Image.Image, image_format: str, **options: Any) -> bytes:
    """The image as Pillow writes it."""
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """One chunk of a PNG file."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_header(width: int, height: int, depth: int = 8, colour_type: int = 2) -> bytes:
    """The signature and the header chunk of a PNG file."""
    return _PNG_SIGNATURE + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0))


def png_16_bit(samples: npt.NDArray[np.uint16], colour_type: int, extra_chunks: bytes = b"") -> bytes:
    """A PNG of 16 bits a sample from uint16 `[H, W]` (colour type 0, gray) or `[H, W, 3]` (colour type 2, RGB)."""
    height, width = samples.shape[:2]
    rows = samples.reshape(height, width * _PNG_SAMPLES[colour_type]).astype(">u2").view(np.uint8)
    return png_header(width, height, 16, colour_type) + extra_chunks + _png_pixels(rows)


def _png_pixels(rows: Pixels) -> bytes:
    """The chunks behind a PNG's header, from the bytes of its rows."""
    scan_lines = b"".join(b"\0" + row.tobytes() for row in rows)
    return png_chunk(b"IDAT", zlib.compress(scan_lines)) + png_chunk(b"IEND", b"")


def tiff_tile_bomb(side: int, tile: int) -> bytes:
    """A TIFF of 150 bytes: `side` x `side` gray pixels in a single tile of `tile` x `tile`, with hardly any content."""
    content = zlib.compress(bytes(100))
    entries = [(256, side), (257, side), (258, 8), (259, 8), (262, 1), (277, 1), (322, tile), (323, tile)]
    directory = [*entries, (324, 8 + 2 + 12 * 10 + 4), (325, len(content))]
    packed = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in directory)
    return b"II*\0" + struct.pack("<IH", 8, len(directory)) + packed + struct.pack("<I", 0) + content


def _opaque(rgb: Pixels) -> Pixels:
    return np.dstack([rgb, np.full(rgb.shape[:2], 255, np.uint8)])


def _alpha(width: int, height: int) -> Pixels:
    """Every opacity, from fully transparent on the left to fully opaque on the right."""
    return np.tile(np.linspace(0, 255, width).astype(np.uint8), (height, 1))


def _rgba(width: int, height: int, seed: int) -> Pixels:
    return np.dstack([picture(width, height, seed), _alpha(width, height)])


def _few_colours(width: int, height: int, shift: int = 0) -> tuple[Image.Image, Pixels]:
    """A palette image of seven colours, and its RGB pixels."""
    y, x = np.mgrid[0:height, 0:width]
    indices = ((x // 9 + y // 5 + shift) % 7).astype(np.uint8)
    palette = np.array([(37 * i % 256, 90 * i % 256, 255 - 30 * i) for i in range(7)], np.uint8)
    image = Image.fromarray(indices, "L").convert("P")
    image.putpalette(palette.tobytes())
    return image, palette[indices]


def _jpeg(width: int, height: int, seed: int, **options: Any) -> Sample:
    rgb = picture(width, height, seed)
    return Sample(encode(Image.fromarray(rgb), "JPEG", quality=90, **options), "JPEG", _opaque(rgb), _LOSSY)


def _jpeg_gray() -> Sample:
    gray = picture(120, 91, 3)[..., 1]
    return Sample(encode(Image.fromarray(gray), "JPEG"), "JPEG", _opaque(np.dstack([gray] * 3)), _LOSSY)


def _jpeg_cmyk() -> Sample:
    rgb = picture(100, 77, 4)
    return Sample(encode(Image.fromarray(rgb).convert("CMYK"), "JPEG", quality=95), "JPEG", _opaque(rgb), _LOSSY)


def _mpo() -> Sample:
    rgb, second = picture(96, 64, 5), Image.fromarray(picture(96, 64, 6))
    data = encode(Image.fromarray(rgb), "MPO", save_all=True, append_images=[second], quality=90)
    return Sample(data, "MPO", _opaque(rgb), _LOSSY)


def _png_palette() -> Sample:
    image, rgb = _few_colours(70, 50)
    return Sample(encode(image, "PNG"), "PNG", _opaque(rgb))


def _png_palette_transparent() -> Sample:
    image, rgb = _few_colours(70, 50, shift=2)
    opacities = np.array([0, 255, 128, 64, 200, 255, 1], np.uint8)
    shown = np.dstack([rgb, opacities[np.asarray(image)]])
    return Sample(encode(image, "PNG", transparency=opacities.tobytes()), "PNG", shown)


def _png_rgba() -> Sample:
    rgba = _rgba(90, 60, 7)
    return Sample(encode(Image.fromarray(rgba), "PNG"), "PNG", rgba)


def _png_gray_alpha() -> Sample:
    gray, alpha = picture(64, 48, 8)[..., 0], _alpha(64, 48)
    return Sample(encode(Image.fromarray(np.dstack([gray, alpha])), "PNG"), "PNG", np.dstack([gray] * 3 + [alpha]))


def _png_gray_16_bit() -> Sample:
    high = picture(64, 48, 9)[..., 0]
    return Sample(png_16_bit(high * np.uint16(256) + np.uint16(77), 0), "PNG", _opaque(np.dstack([high] * 3)))


def _png_rgb_16_bit() -> Sample:
    high = picture(40, 30, 10)
    return Sample(png_16_bit(high * np.uint16(256) + np.uint16(200), 2), "PNG", _opaque(high))


def _png_rgb_transparent_colour() -> Sample:
    rgb = picture(50, 40, 11)
    rgb[10:30, 5:45] = key = (255, 0, 254)
    alpha = np.where((rgb == key).all(axis=-1), 0, 255).astype(np.uint8)
    return Sample(encode(Image.fromarray(rgb), "PNG", transparency=key), "PNG", np.dstack([rgb, alpha]))


def _png_gray_16_bit_transparent() -> Sample:
    samples = picture(64, 48, 22)[..., 0] * np.uint16(256) + np.uint16(1)
    samples[10:30, 5:45] = key = 0x4000
    samples[30:40] = key + 1
    alpha = np.where(samples == key, 0, 255).astype(np.uint8)
    transparent = png_chunk(b"tRNS", struct.pack(">H", key))
    return Sample(png_16_bit(samples, 0, transparent), "PNG", np.dstack([samples >> 8] * 3 + [alpha]).astype(np.uint8))


def _png_rgb_16_bit_transparent() -> Sample:
    """The last rows differ from the transparent colour in the low byte of one sample only."""
    samples = picture(50, 40, 23) * np.uint16(256)
    samples[10:30, 5:45] = 0x4001
    samples[30:] = 0x4001, 0x4001, 0x4002
    alpha = np.where((samples == 0x4001).all(axis=-1), 0, 255).astype(np.uint8)
    transparent = png_chunk(b"tRNS", struct.pack(">HHH", 0x4001, 0x4001, 0x4001))
    return Sample(png_16_bit(samples, 2, transparent), "PNG", np.dstack([samples >> 8, alpha]).astype(np.uint8))


def _png_gray_few_bits_transparent(depth: int) -> Sample:
    values = picture(64, 48, 24)[..., 0] >> np.uint8(8 - depth)
    key, white = 2**depth // 2 - 1, 2**depth - 1
    packed = np.packbits(np.unpackbits(values[..., None], axis=-1)[..., -depth:].reshape(48, -1), axis=-1)
    transparent = png_chunk(b"tRNS", struct.pack(">H", key))
    shown = np.dstack([values * (255 // white)] * 3 + [np.where(values == key, 0, 255)]).astype(np.uint8)
    return Sample(png_header(64, 48, depth, 0) + transparent + _png_pixels(packed), "PNG", shown)


def _png_animated() -> Sample:
    rgb, second = picture(45, 33, 12), Image.fromarray(picture(45, 33, 13))
    data = encode(Image.fromarray(rgb), "PNG", save_all=True, append_images=[second])
    return Sample(data, "PNG", _opaque(rgb))


def _webp_lossy() -> Sample:
    rgb = picture(110, 80, 14)
    return Sample(encode(Image.fromarray(rgb), "WEBP", quality=90), "WEBP", _opaque(rgb), _LOSSY)


def _webp_lossless_alpha() -> Sample:
    rgba = _rgba(66, 55, 15)
    return Sample(encode(Image.fromarray(rgba), "WEBP", lossless=True, exact=True), "WEBP", rgba)


def _webp_animated() -> Sample:
    rgba, second = _rgba(52, 44, 16), Image.fromarray(_rgba(52, 44, 17))
    # libwebp forgets the colour of what it blends with nothing.
    rgba[..., 3] = 255
    rgba[10:30, 10:30] = 0
    data = encode(Image.fromarray(rgba), "WEBP", save_all=True, append_images=[second], lossless=True, exact=True)
    return Sample(data, "WEBP", rgba)


def _gif_animated() -> Sample:
    image, rgb = _few_colours(80, 40)
    data = encode(image, "GIF", save_all=True, append_images=[_few_colours(80, 40, shift=3)[0]], duration=50)
    return Sample(data, "GIF", _opaque(rgb))


def _gif_transparent() -> Sample:
    image, rgb = _few_colours(60, 45)
    alpha = np.where(np.asarray(image) == 2, 0, 255).astype(np.uint8)
    return Sample(encode(image, "GIF", transparency=2), "GIF", np.dstack([rgb, alpha]))


def _bmp() -> Sample:
    rgb = picture(63, 41, 18)
    return Sample(encode(Image.fromarray(rgb), "BMP"), "BMP", _opaque(rgb))


def _bmp_alpha(is_used: bool) -> Sample:
    """A fourth channel, which many programs say is there and leave zero."""
    rgb, alpha = picture(63, 41, 26 + is_used), _alpha(63, 41) * is_used
    header = struct.pack("<IiiHHI20x4I52x", 108, 63, 41, 1, 32, 3, 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    rows = np.dstack([rgb[..., ::-1], alpha])[::-1].tobytes()
    data = b"BM" + struct.pack("<IHHI", 122 + len(rows), 0, 0, 122) + header + rows
    return Sample(data, "BMP", np.dstack([rgb, alpha]) if is_used else _opaque(rgb))


def _bmp_two_colours(bits: int) -> Sample:
    """Black and white, in more bits than these take: so does Pillow write a palette of two colours."""
    indices = np.zeros((33, 64), np.uint8)
    indices[:, :61] = picture(61, 33, bits)[..., 0] > 110
    rows = (indices if bits == 8 else indices[:, ::2] << 4 | indices[:, 1::2])[::-1].tobytes()
    header = struct.pack("<IiiHHIIiiII", 40, 61, 33, 1, bits, 0, len(rows), 0, 0, 2, 0) + b"\0\0\0\0\xff\xff\xff\0"
    data = b"BM" + struct.pack("<IHHI", 14 + len(header) + len(rows), 0, 0, 14 + len(header)) + header + rows
    return Sample(data, "BMP", _opaque(np.dstack([indices[:, :61] * np.uint8(255)] * 3)))


def _bmp_run_lengths(bits: int) -> Sample:
    """Rows of an odd number of literal values and then runs, the last of them longer than the row; some rows are left
    out, those at the end of the file among them.
    """
    image, _ = _few_colours(61, 33, shift=bits)
    palette = np.array(image.getpalette(), np.uint8)[:21].reshape(7, 3)
    indices = np.array(image)
    indices[:3] = indices[12:15] = 0
    rows = [_run_lengths(row.tobytes(), bits) for row in indices[::-1]]
    content = b"".join([*rows[:18], b"\0\0", b"\0\2\0\2", *rows[21:30]]) + b"\0\1"
    header = struct.pack("<IiiHHIIiiII", 40, 61, 33, 1, bits, 1 if bits == 8 else 2, len(content), 0, 0, 7, 0)
    head = header + np.insert(palette[:, ::-1], 3, 0, axis=1).tobytes()
    data = b"BM" + struct.pack("<IHHI", 14 + len(head) + len(content), 0, 0, 14 + len(head)) + head + content
    return Sample(data, "BMP", _opaque(palette[indices]))


def _run_lengths(row: bytes, bits: int) -> bytes:
    literal = row[:35] if bits == 8 else bytes.fromhex("".join(f"{value:x}" for value in row[:36]))
    runs = [(len(list(run)), value * (1 if bits == 8 else 17)) for value, run in itertools.groupby(row[35:])]
    runs[-1] = (runs[-1][0] + 4, runs[-1][1])
    return bytes([0, 35]) + literal + b"\0" * (len(literal) % 2) + b"".join(map(bytes, runs)) + b"\0\0"


def _tiff_lzw_pages() -> Sample:
    rgb, second = picture(61, 47, 19), Image.fromarray(picture(61, 47, 20))
    data = encode(Image.fromarray(rgb), "TIFF", compression="tiff_lzw", save_all=True, append_images=[second])
    return Sample(data, "TIFF", _opaque(rgb))


def _tiff_palette_of_bytes(has_alpha: bool = False) -> Sample:
    """Its palette has 8 bits a value, as some scanners write it, though the format's have 16."""
    image, rgb = _few_colours(62, 45)
    alpha = _alpha(62, 45) if has_alpha else np.full((45, 62), 255, np.uint8)
    if has_alpha:
        image = image.convert("PA")
        image.putalpha(Image.fromarray(alpha))
    data = encode(image, "TIFF")
    colours = np.frombuffer(bytes(image.getpalette() or ()).ljust(768, b"\0"), np.uint8).reshape(256, 3).T
    data = data.replace((colours * np.uint16(256)).tobytes(), colours.astype("<u2").tobytes())
    return Sample(data, "TIFF", np.dstack([rgb, alpha]))


def _tiff_gray(bits: int, photometric: int) -> Sample:
    """More than 8 bits a sample in one strip; `photometric` 0 is white at zero, 1 black at zero."""
    gray = picture(62, 44, 25)[..., 0]
    values = (gray.astype(np.uint16) << (bits - 8)) + 5
    samples = values if photometric else 2**bits - 1 - values
    rows = np.unpackbits(samples.astype(">u2").view(np.uint8).reshape(44, 62, 2), axis=-1)[..., -bits:]
    content = np.packbits(rows.reshape(44, -1), axis=-1)
    if bits == 16:
        content = samples.astype("<u2").view(np.uint8)
    tags = {256: 62, 257: 44, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: 44, 279: content.size}
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    data = (
        struct.pack("<4sI", b"II*\0", 8 + content.size) + content.tobytes() + struct.pack("<H", len(tags)) + directory
    )
    return Sample(data + bytes(4), "TIFF", _opaque(np.dstack([gray] * 3)))


def _tiff_gray_premultiplied() -> Sample:
    """Gray that is multiplied by its alpha already."""
    alpha = _alpha(62, 44)
    stored = np.minimum(picture(62, 44, 28)[..., 0], alpha)
    data = encode(Image.fromarray(np.dstack([stored, alpha])), "TIFF")
    unassociated, associated = (struct.pack("<HHIHH", 338, 3, 1, kind, 0) for kind in (2, 1))
    gray = (stored * 255.0 // np.maximum(alpha, 1)).astype(np.uint8)
    return Sample(data.replace(unassociated, associated), "TIFF", np.dstack([gray] * 3 + [alpha]))


def _avif() -> Sample:
    rgb = picture(94, 62, 21)
    return Sample(encode(Image.fromarray(rgb), "AVIF", quality=90), "AVIF", _opaque(rgb), _LOSSY)


def _one_pixel() -> Sample:
    rgb = np.array([[[200, 30, 90]]], np.uint8)
    return Sample(encode(Image.fromarray(rgb), "PNG"), "PNG", _opaque(rgb))


def _vast() -> Sample:
    """30 million pixels, so flat that they take some kilobytes."""
    rows = (np.arange(3000) // 300 * 25).astype(np.uint8)
    gray = Image.fromarray(np.broadcast_to(rows[:, None], (3000, 10000)))
    shown = np.stack([rows, rows, rows, np.full_like(rows, 255)], axis=-1)[:, None]
    return Sample(encode(gray, "PNG", compress_level=1), "PNG", np.broadcast_to(shown, (3000, 10000, 4)))


_MAKERS: dict[str, Callable[[], Sample]] = {
    "jpeg_photo": lambda: _jpeg(500, 375, 1),
    "jpeg_progressive": lambda: _jpeg(200, 133, 2, progressive=True),
    "jpeg_gray": _jpeg_gray,
    "jpeg_cmyk": _jpeg_cmyk,
    "jpeg_turned": lambda: oriented(6),
    "mpo": _mpo,
    "png_palette": _png_palette,
    "png_palette_transparent": _png_palette_transparent,
    "png_rgba": _png_rgba,
    "png_gray_alpha": _png_gray_alpha,
    "png_gray_16_bit": _png_gray_16_bit,
    "png_rgb_16_bit": _png_rgb_16_bit,
    "png_rgb_transparent_colour": _png_rgb_transparent_colour,
    "png_gray_16_bit_transparent": _png_gray_16_bit_transparent,
    "png_rgb_16_bit_transparent": _png_rgb_16_bit_transparent,
    "png_gray_4_bit_transparent": lambda: _png_gray_few_bits_transparent(4),
    "png_gray_2_bit_transparent": lambda: _png_gray_few_bits_transparent(2),
    "png_gray_1_bit_transparent": lambda: _png_gray_few_bits_transparent(1),
    "png_animated": _png_animated,
    "webp_lossy": _webp_lossy,
    "webp_lossless_alpha": _webp_lossless_alpha,
    "webp_animated": _webp_animated,
    "gif_animated": _gif_animated,
    "gif_transparent": _gif_transparent,
    "bmp": _bmp,
    "bmp_alpha": lambda: _bmp_alpha(True),
    "bmp_unused_alpha": lambda: _bmp_alpha(False),
    "bmp_two_colours_4_bit": lambda: _bmp_two_colours(4),
    "bmp_two_colours_8_bit": lambda: _bmp_two_colours(8),
    "bmp_run_lengths_4_bit": lambda: _bmp_run_lengths(4),
    "bmp_run_lengths_8_bit": lambda: _bmp_run_lengths(8),
    "tiff_lzw_pages": _tiff_lzw_pages,
    "tiff_palette_of_bytes": _tiff_palette_of_bytes,
    "tiff_palette_of_bytes_and_alpha": lambda: _tiff_palette_of_bytes(has_alpha=True),
    "tiff_gray_12_bit": lambda: _tiff_gray(12, 1),
    "tiff_gray_16_bit": lambda: _tiff_gray(16, 1),
    "tiff_gray_16_bit_white_is_zero": lambda: _tiff_gray(16, 0),
    "tiff_gray_premultiplied": _tiff_gray_premultiplied,
    **({"avif": _avif} if features.check("avif") else {}),
    "one_pixel": _one_pixel,
    "vast": _vast,
}

NAMES = tuple(_MAKERS)
"""The awkward images by name."""

SMALL_NAMES = tuple(name for name in NAMES if name != "vast")
"""Those of at most 500x375 pixels, for tests that decode each of them many times."""

_MISREAD = ("bmp_run_lengths", "bmp_two_colours", "tiff_gray", "tiff_palette", "png_gray_16_bit")
MISREAD_BY_PILLOW = tuple(name for name in NAMES if name.startswith(_MISREAD))
"""Those that `Image.convert("RGB")` shows otherwise than they are."""
