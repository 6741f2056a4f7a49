"""What Pillow reads wrongly, put right.

Comes in: an image that Pillow has opened and not loaded. Goes out: the picture that its file holds, in a mode that
`Image.convert("RGB")` converts well. It must not know of limits, orientation or backgrounds.
"""

import io
from collections.abc import Iterator
from typing import cast

import numpy as np
from PIL import AvifImagePlugin, Image, ImageFile, ImagePalette, TiffImagePlugin, TiffTags

from service.errors import CorruptImage
from service.preprocessing import bmp, libtiff

_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
_STRIP_PIXELS = 1 << 18
# For each strip of these Pillow makes a transform anew, which takes half as long as the strip above.
_LAB_STRIP_PIXELS = 1 << 22
_RGB, _YCBCR = 2, 6  # a TIFF's photometric interpretations
_PLANES = 2  # a TIFF's planar configuration
_JPEG_AND_FAX = (2, 4, 7, 32771)  # a TIFF's compressions
_OLD_JPEG = 6
_UNASSOCIATED_ALPHA = 2  # a TIFF's extra sample
# What Pillow multiplies the samples of a gray PNG by that have 2 or 4 bits.
_GRAY_STEPS = {"L;2": 85, "L;4": 17}


def is_misread(image: ImageFile.ImageFile) -> bool:
    """Whether it is a TIFF whose samples Pillow takes for others than they are, which cannot be put right.

    It takes brightness and colour for red, green and blue, as which only libtiff gives them. Of samples in planes of
    their own that libtiff does not read it heeds neither the bits and their order nor what is white; of alpha in a
    plane of its own it reads one kind, and of LAB it takes signed samples for unsigned ones.
    """
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return False
    tags, is_raw = image.tag_v2, image.tile[0].codec_name == "raw"
    if tags.get(TiffImagePlugin.COMPRESSION) == _OLD_JPEG:
        return _is_odd_old_jpeg(image)
    photometric = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 0)
    if tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) != _PLANES:
        return bool(is_raw and photometric == _YCBCR)
    extra = tags.get(TiffImagePlugin.EXTRASAMPLES, ())
    is_alpha_read = image.mode == "RGBA" and len(extra) == 1 and (not is_raw or extra == (_UNASSOCIATED_ALPHA,))
    if image.mode == "LAB" or (image.mode in ("LA", "La", "PA", "RGBA") and not is_alpha_read):
        return True
    bits = set(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
    is_plain = bits == {8} or image.mode == "1"
    return is_raw and (not is_plain or photometric in (0, _YCBCR) or tags.get(TiffImagePlugin.FILLORDER, 1) != 1)


def _is_odd_old_jpeg(image: TiffImagePlugin.TiffImageFile) -> bool:
    """Whether Pillow takes its samples for YCbCr and libtiff does not, or it has planes of several strips.

    Pillow would read four bytes of each pixel's three, and so what stands in memory behind the last tile; and for each
    strip of a plane libtiff decodes all that are before it. Where there is one strip, libtiff knows of no planes.
    """
    tags = image.tag_v2
    parts = [len(tags.get(tag, ())) for tag in (TiffImagePlugin.STRIPOFFSETS, TiffImagePlugin.STRIPBYTECOUNTS)]
    if tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == _PLANES and parts != [1, 1]:
        return True
    return image.mode == "RGB" and tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, _YCBCR) not in (_RGB, _YCBCR)


def load(image: ImageFile.ImageFile, data: bytes) -> Image.Image:
    """The picture, from the bytes that `image` was opened from; raises what Pillow does, and `CorruptImage`."""
    if isinstance(image, AvifImagePlugin.AvifImageFile):
        return _avif_picture(image)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        _refuse_unwritten_pixels(image, data)
        _forget_subdirectories(image)
        _read_palette_of_bytes(image)
    _read_two_colours(image, data)
    stored = image.tile[0] if image.tile else None  # forgotten once the pixels are there
    if stored and stored.codec_name == "bmp_rle":
        _expand_run_lengths(image, data)
    image.load()
    if stored:
        _mend_transparent_colour(image, stored, data)
    _fill_unused_alpha(image)
    return _eight_bits(image) if image.mode in _SIXTEEN_BIT_MODES else image


def strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """The image in strips, each with the row that it begins at: a copy of a large image takes as much memory as it."""
    rows = max(1, (_LAB_STRIP_PIXELS if image.mode == "LAB" else _STRIP_PIXELS) // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        strip = image.crop(box) if rows < image.height else image
        # Gray that is multiplied by its alpha already Pillow converts to nothing else.
        yield top, strip.convert("LA") if strip.mode == "La" else strip


def _refuse_unwritten_pixels(image: TiffImagePlugin.TiffImageFile, data: bytes) -> None:
    """In their place Pillow shows what stood in memory before."""
    if image.tag_v2.get(TiffImagePlugin.COMPRESSION) in _JPEG_AND_FAX and not libtiff.fills_memory(data):
        raise CorruptImage("the TIFF is truncated or corrupt: a strip or tile ends before its last row")


def _avif_picture(image: AvifImagePlugin.AvifImageFile) -> Image.Image:
    """As `image.load`, which takes the samples for gray where an AVIF calls itself gray and holds colours."""
    samples, *_ = image._decoder.get_frame(0)
    if len(samples) != image.width * image.height * len(image.getbands()):
        raise CorruptImage("the AVIF holds other samples than its header says")
    return Image.frombytes(image.mode, image.size, samples)


def _forget_subdirectories(image: TiffImagePlugin.TiffImageFile) -> None:
    """Keep Pillow from reading the directories of metadata that the first one points to, however large they are."""
    exif = image.getexif()
    for key in TiffTags.TAGS_V2_GROUPS:
        if key in exif:
            del exif[key]


def _read_palette_of_bytes(image: TiffImagePlugin.TiffImageFile) -> None:
    """A TIFF's palette has 16 bits a value, but that of some writers 8, as libtiff knows; Pillow makes it black."""
    if image.mode in ("P", "PA") and max(colours := image.tag_v2[TiffImagePlugin.COLORMAP]) < 256:
        image.palette = ImagePalette.raw("RGB;L", bytes(colours))


def _read_two_colours(image: ImageFile.ImageFile, data: bytes) -> None:
    """A BMP of 4 or 8 bits a pixel whose palette is black and white, which Pillow takes for one bit a pixel."""
    if image.format == "BMP" and image.mode == "1" and data[28] in (4, 8):
        image._mode, image.palette = "P", ImagePalette.raw("RGB", b"\0\0\0\xff\xff\xff")
        rawmode = "P" if data[28] == 8 else "P;4"
        image.tile = [tile._replace(args=(rawmode, *cast(tuple[int, ...], tile.args)[1:])) for tile in image.tile]


def _expand_run_lengths(image: ImageFile.ImageFile, data: bytes) -> None:
    """Have Pillow read the pixels of a BMP as if they had been stored one by one."""
    (tile,) = image.tile
    _, four_bits, direction = cast(tuple[str, bool, int], tile.args)
    image.fp = io.BytesIO(bmp.indices(data[tile.offset :], *image.size, four_bits))
    image.tile = [tile._replace(codec_name="raw", offset=0, args=("L" if image.mode == "L" else "P", 0, direction))]


def _mend_transparent_colour(image: ImageFile.ImageFile, stored: ImageFile._Tile, data: bytes) -> None:
    """Compare a PNG's pixels with its transparent colour, which Pillow leaves as it is in the file, in full."""
    colour = image.info.get("transparency")
    if isinstance(colour, tuple) and stored.args == "RGB;16B":
        del image.info["transparency"]
        image.putalpha(_unlike(colour, image, _low_bytes(data)))
    elif isinstance(colour, int) and stored.args in _GRAY_STEPS:
        image.info["transparency"] = colour * _GRAY_STEPS[stored.args]


def _low_bytes(data: bytes) -> Image.Image:
    """Of a PNG of 16 bits a sample what Pillow leaves out."""
    image = Image.open(io.BytesIO(data), formats=["PNG"])
    image.tile = [tile._replace(args="RGB;16L") for tile in image.tile]
    image.load()
    return image


def _unlike(colour: tuple[int, ...], high: Image.Image, low: Image.Image) -> Image.Image:
    """A mask of the pixels of another colour, from the high and low bytes of their samples."""
    unlike = np.empty((high.height, high.width), np.uint8)
    for (top, high_bytes), (_, low_bytes) in zip(strips(high), strips(low), strict=True):
        samples = np.asarray(high_bytes).astype(np.uint16) << 8 | np.asarray(low_bytes)
        # any(axis=-1) would take six times as long.
        red, green, blue = (samples[..., channel] != value for channel, value in enumerate(colour))
        unlike[top : top + len(samples)] = (red | green | blue) * np.uint8(255)
    return Image.fromarray(unlike)


def _fill_unused_alpha(image: ImageFile.ImageFile) -> None:
    """Make a BMP opaque whose alpha is zero everywhere: who wrote it left it alone, and viewers show the picture."""
    if image.format == "BMP" and image.mode == "RGBA" and not image.getchannel("A").getbbox():
        image.putalpha(255)


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit gray -> 8-bit gray, as Pillow itself reads 16-bit colour; its own conversion clips to white instead.

    Where one value is transparent, the result has an alpha channel.
    """
    samples = np.asarray(image)
    bits, white_is_zero = _tiff_samples(image)
    gray = (samples >> (bits - 8)).astype(np.uint8)
    if white_is_zero:
        gray = ~gray
    if "transparency" not in image.info:
        return Image.fromarray(gray)
    alpha = (samples != image.info["transparency"]) * np.uint8(255)
    return Image.fromarray(np.dstack([gray, alpha]))


def _tiff_samples(image: Image.Image) -> tuple[int, bool]:
    """Bits a sample and whether white is zero, neither of which Pillow heeds in its 16-bit modes."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 16, False
    bits = image.tag_v2[TiffImagePlugin.BITSPERSAMPLE][0]
    # Of a file that does not say, Pillow supposes the same.
    return bits, image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, 0) == 0
