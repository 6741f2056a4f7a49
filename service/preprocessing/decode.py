"""Bytes or base64 -> one RGB image, within limits.

Comes in: one row as the client sent it. Goes out: a `DecodedImage`, or a typed fault. It must not know of batches,
models or the protocol.
"""

import binascii
import io
import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pybase64
import simplejpeg
from PIL import AvifImagePlugin, Image, ImageFile, TiffImagePlugin

from service.errors import (
    CorruptImage,
    EmptyInput,
    Fault,
    InvalidBase64,
    TooManyBytes,
    TooManyPixels,
    UnsupportedFormat,
)
from service.preprocessing import libtiff, metadata, pillow_compat

# The only Pillow decoders that a client's bytes may reach. JPEG also stands for MPO, the multi-picture JPEG of phones.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")

# Pillow keeps a pointer for every row, which of a column of single pixels is most of the memory.
MAX_SIDE = 65_535
# How many times the limit of pixels all frames of an AVIF may have: colour and alpha are two, with a film's cover four,
# but few films are half as large as an image may be. Of 50 megapixels each takes up to 300 MiB, and some stay there.
MAX_FRAMES_TIMES = 2
# How many times an image's pixels all tiles of a TIFF may have: they stand out over its edges.
MAX_TILED_TIMES = 4
MIN_TILED_PIXELS = 1 << 22
# Of a BMP: they are expanded in Python, which takes up to a second for so many.
MAX_RUN_LENGTH_BYTES = 1 << 21

_TRANSPOSE_BY_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# 32-bit integers and floats: nothing in the file says which value is white, so any guess would be silently wrong.
_UNSCALED_MODES = ("I", "F")
# How Pillow's complaints begin on a sound header of an image that it cannot read.
_OF_UNKNOWN_KIND = (
    "unknown pixel mode",
    "cannot handle",
    "Unsupported BMP",
    "unknown data organization",
    "Windows Media Photo",
    "string index out of range",
)
# How Pillow's complaint ends about a HEIC, which begins as an AVIF does.
_OF_ANOTHER_FORMAT = "Invalid ftyp"
_LOOKS_LIKE_BASE64 = re.compile(rb"[A-Za-z0-9+/\-_]{16}|data:")


@dataclass(frozen=True)
class DecodedImage:
    """An RGB image, and what is left to do with it when it is resized.

    Attributes:
        pixels: uint8 RGB `[H, W, 3]`.
        extent: width and height of the picture in these pixels. They are no whole numbers where a JPEG was decoded at a
            reduced scale: an eighth of 500 pixels is 62.5, which libjpeg spreads over 63 pixels, the last of them half
            outside the picture. To take them for 63 would stretch the picture.
        transpose: what turns the image upright, as its EXIF orientation says; None where it is upright.
    """

    pixels: npt.NDArray[np.uint8]
    extent: tuple[float, float]
    transpose: Image.Transpose | None


@dataclass(frozen=True)
class Decoder:
    """Decodes one row at a time; safe to share between threads.

    Attributes:
        max_bytes: the largest encoded image, in bytes (of the image, not of its base64 text).
        max_pixels: the largest image, width times height, decided from the header before any decoding.
        least_side: JPEGs are decoded by libjpeg-turbo itself, past Pillow, and large ones at half, a quarter or an
            eighth of their size, as long as both sides keep this many pixels. None has Pillow decode every pixel.
        exif_orientation: turn the image as its EXIF orientation says.
        background: the RGB colour that transparency is composited on, or None to drop the alpha channel as
            `Image.convert("RGB")` does.
    """

    max_bytes: int
    max_pixels: int
    least_side: int | None = None
    exif_orientation: bool = True
    background: tuple[int, int, int] | None = (255, 255, 255)

    def __post_init__(self) -> None:
        Image.init()  # registers Pillow's plug-ins now, before threads could do so at the same time
        libtiff.prepare()
        AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # as of any other format: others decode meanwhile

    def image_bytes(self, row: bytes | memoryview, base64_encoded: bool) -> bytes | memoryview:
        """One row as the client sent it -> the encoded image.

        Raises:
            EmptyInput, InvalidBase64, TooManyBytes.
        """
        if not row:
            raise EmptyInput("the row has no bytes; send one encoded image a row")
        size = len(row) // 4 * 3 - bytes(row[-2:]).count(b"=") if base64_encoded else len(row)
        if size > self.max_bytes:
            raise TooManyBytes(f"the image has {size} bytes, the limit is {self.max_bytes}")
        return _decode_base64(bytes(row)) if base64_encoded else row

    def decode(self, image: bytes | memoryview) -> DecodedImage:
        """One encoded image -> an RGB image.

        Raises:
            UnsupportedFormat, TooManyPixels, CorruptImage.
            MemoryError: the machine has none left, which is no fault of the image: its size is limited.
        """
        # A view of a batch becomes bytes only here: not all of a large batch need be there twice.
        stripped = metadata.strip(bytes(image))
        return self._decode_plain_jpeg(stripped) or self._decode_by_pillow(stripped, len(image))

    def _decode_plain_jpeg(self, stripped: metadata.Stripped) -> DecodedImage | None:
        """By libjpeg-turbo itself; None for no plain JPEG, and for one with any damage: Pillow decides on those.

        Pillow's look at the header alone takes as long as everything else that is done here in Python.
        """
        if self.least_side is None or stripped.plain_jpeg is None:
            return None
        width, height = stripped.plain_jpeg
        self._check_size(width, height)
        scale = self._scale(width, height)
        try:
            pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(
                stripped.data, min_width=-(-width // scale), min_height=-(-height // scale)
            )
        except ValueError:
            return None
        return DecodedImage(pixels, (width / scale, height / scale), self._transpose(stripped.exif, stripped.xmp))

    def _decode_by_pillow(self, stripped: metadata.Stripped, size: int) -> DecodedImage:
        self._check_size(*stripped.frame)
        # Equal pieces of a picture take few bytes.
        most = MAX_FRAMES_TIMES * self.max_pixels
        if stripped.frames_pixels > most:
            raise _too_many_pixels(f"{stripped.frames_pixels} pixels in all frames of the AVIF", most)
        image = _open(stripped.data)
        try:
            self._check_header(image, size)
            width, height = image.size
            scale = self._scale(width, height) if image.format == "JPEG" else 1
            pixels = self._load(image, stripped.data, scale)
            # Pillow has turned a TIFF, which its size before tells only where a tag of its own says so.
            extent = (width / scale, height / scale) if scale > 1 else (pixels.shape[1], pixels.shape[0])
            exif = stripped.exif or image.info.get("exif", b"")
            # What turns an AVIF stands in its boxes, and Pillow puts that into its EXIF.
            xmp = b"" if image.format == "AVIF" else stripped.xmp or image.info.get("xmp", b"")
            transpose = None if image.format == "TIFF" else self._transpose(exif, xmp)
            return DecodedImage(pixels, extent, transpose)
        except (Fault, MemoryError):
            raise
        # Pillow's decoders raise nearly every built-in exception on damaged data.
        except Exception as error:
            raise CorruptImage(f"the {image.format} data is truncated or corrupt ({_one_line(error)})") from error

    def _check_header(self, image: ImageFile.ImageFile, size: int) -> None:
        # libtiff allocates a whole tile, however small the image in its corner.
        for width, height in (image.size, _tile_size(image)):
            self._check_size(width, height)
        tiled = _tiled_pixels(image)
        if tiled > max(MAX_TILED_TIMES * image.width * image.height, MIN_TILED_PIXELS):
            raise TooManyPixels(f"{image.width}x{image.height} in tiles of {tiled} pixels; save it with smaller tiles")
        if image.mode in _UNSCALED_MODES:
            raise UnsupportedFormat(f"{image.format} of 32 bits a sample, or signed, is not read; send 8 or 16 bits")
        if pillow_compat.is_misread(image):
            raise UnsupportedFormat("a TIFF with its samples stored like this is not read; save it as RGB, with LZW")
        if size > MAX_RUN_LENGTH_BYTES and any(tile.codec_name == "bmp_rle" for tile in image.tile):
            raise UnsupportedFormat("a large BMP of run lengths is not read; send it uncompressed or as PNG")

    def _check_size(self, width: int, height: int) -> None:
        if max(width, height) > MAX_SIDE:
            raise TooManyPixels(f"{width}x{height} has a side of over {MAX_SIDE} pixels; send a smaller image")
        if width * height > self.max_pixels:
            raise _too_many_pixels(f"{width}x{height}", self.max_pixels)

    def _scale(self, width: int, height: int) -> int:
        """What to divide the sides of a JPEG by while decoding: 2, 4 or 8 for a large one, else 1."""
        if self.least_side is None:
            return 1
        side = min(width, height)
        return next(scale for scale in (8, 4, 2, 1) if scale == 1 or side // scale >= self.least_side)

    def _transpose(self, exif: bytes, xmp: bytes) -> Image.Transpose | None:
        orientation = metadata.orientation(exif, xmp) if self.exif_orientation else None
        return None if orientation is None else _TRANSPOSE_BY_ORIENTATION.get(orientation)

    def _load(self, image: ImageFile.ImageFile, data: bytes, scale: int) -> npt.NDArray[np.uint8]:
        if scale > 1:
            image.draft(None, (image.width // scale, image.height // scale))
        return self._to_rgb(pillow_compat.load(image, data))

    def _to_rgb(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        pixels = np.empty((image.height, image.width, 3), np.uint8)
        for top, strip in pillow_compat.strips(image):
            pixels[top : top + strip.height] = self._opaque(strip)
        return pixels

    def _opaque(self, image: Image.Image) -> Image.Image:
        if self.background is not None and image.has_transparency_data:
            return _composite(image, self.background)
        # convert() would copy an image that is RGB already.
        return image if image.mode == "RGB" else image.convert("RGB")


def _decode_base64(text: bytes) -> bytes:
    try:
        return pybase64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise InvalidBase64(f"{_base64_problem(text)}; send the image's base64 text and nothing else") from error


def _base64_problem(text: bytes) -> str:
    if text.startswith(b"data:"):
        return "the row starts with a data: URI prefix"
    if re.search(rb"\s", text):
        return "the row holds line breaks or spaces"
    if re.search(rb"[^A-Za-z0-9+/=]", text):
        return "the row holds bytes outside the base64 alphabet"
    return "the row's base64 padding is wrong"


def _open(data: bytes) -> ImageFile.ImageFile:
    """As `Image.open`, which does not tell what a format's reader complains of."""
    for name in filter(Image.OPEN.__contains__, FORMATS):
        read, accepts = Image.OPEN[name]
        if accepts is None or accepts(data[:16]) is not True:
            continue
        try:
            return read(io.BytesIO(data), "")
        except MemoryError:
            raise
        except Exception as error:
            complaint = str(error)
            if complaint.endswith(_OF_ANOTHER_FORMAT):
                break
            if complaint.startswith(_OF_UNKNOWN_KIND):
                raise UnsupportedFormat(
                    f"{name} of this kind is not read ({complaint}); save it as gray or RGB of 8 bits a sample"
                ) from error
            # A known signature in front of a header that cannot be read is damage, not an unknown format.
            raise CorruptImage("the image is truncated or corrupt in its header") from error
    hint = ""
    if _LOOKS_LIKE_BASE64.match(data):
        hint = "; if it is base64 text, set the request parameter base64_encoded to true"
    raise UnsupportedFormat(f"the row is none of {', '.join(FORMATS)}{hint}")


def _too_many_pixels(found: str, max_pixels: int) -> TooManyPixels:
    return TooManyPixels(f"{found} is over the limit of {max_pixels} pixels; send a smaller image")


def _tile_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of a TIFF's tiles, in pixels; zeros for an image without tiles."""
    return _tag(image, TiffImagePlugin.TILEWIDTH), _tag(image, TiffImagePlugin.TILELENGTH)


def _tiled_pixels(image: Image.Image) -> int:
    """Pixels of all of a TIFF's tiles, which are decoded to their ends; zero for an image without tiles."""
    tile_width, tile_height = _tile_size(image)
    if not tile_width or not tile_height:
        return 0
    # The image's own size is already the turned one.
    width, height = _tag(image, TiffImagePlugin.IMAGEWIDTH), _tag(image, TiffImagePlugin.IMAGELENGTH)
    return -(-width // tile_width) * tile_width * -(-height // tile_height) * tile_height


def _tag(image: Image.Image, number: int) -> int:
    """The number that a TIFF's tag holds; zero for an image without it."""
    return int(image.tag_v2.get(number, 0)) if isinstance(image, TiffImagePlugin.TiffImageFile) else 0


def _composite(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    canvas = Image.new("RGBA", image.size, (*background, 255))
    canvas.alpha_composite(image.convert("RGBA"))
    return canvas.convert("RGB")


def _one_line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
