"""What libtiff does not fill shows nobody's memory, and what it fills is read."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from service.errors import CorruptImage, UnsupportedFormat
from service.preprocessing.decode import Decoder
from service.preprocessing.libtiff import MAX_SCANS
from tests.hostile_images import Tag, scans, tiff
from tests.images import encode, picture
from tests.limits import open_files

DECODER = Decoder(2**25, 50_000_000)
WIDTH, HEIGHT = 61, 48
RUN_LENGTHS, GROUP_4, OLD_JPEG, JPEG = 2, 4, 6, 7
FAX = {RUN_LENGTHS: "tiff_ccitt", GROUP_4: "group4"}


def _of_one_part(compression: int, content: bytes, tiled: bool = False) -> bytes:
    """A TIFF of `WIDTH` x `HEIGHT` gray pixels in a single strip, or a tile that is a little wider."""
    tags = {256: WIDTH, 257: HEIGHT, 258: 1 if compression in FAX else 8, 259: compression, 262: 1, 277: 1}
    tags |= {322: 64, 323: HEIGHT, 325: len(content)} if tiled else {278: HEIGHT, 279: len(content)}
    tags[324 if tiled else 273] = 8 + 2 + 12 * (len(tags) + 1) + 4
    return tiff([(tag, 4, 1, value) for tag, value in tags.items()], content)


def _fax(compression: int, width: int, height: int, colour: int = 1) -> bytes:
    data = encode(Image.new("1", (width, height), colour), "TIFF", compression=FAX[compression])
    with Image.open(io.BytesIO(data)) as image:
        assert isinstance(image, TiffImagePlugin.TiffImageFile)
        (start,), (size,) = image.tag_v2[273], image.tag_v2[279]
    return data[start : start + size]


def _jpeg(_: int, width: int, height: int, colour: int = 1) -> bytes:
    return encode(Image.new("L", (width, height), 255 * colour), "JPEG")


ENDS_EARLY = {
    "run lengths, tile": _of_one_part(RUN_LENGTHS, _fax(RUN_LENGTHS, 64, HEIGHT - 2), tiled=True),
    "group 4": _of_one_part(GROUP_4, _fax(GROUP_4, WIDTH, HEIGHT - 2)),  # it fills one row more than it has
    "group 4, tile": _of_one_part(GROUP_4, _fax(GROUP_4, 64, 3), tiled=True),
}
SMALL_JPEGS = {
    "fewer rows": ((WIDTH, HEIGHT - 1), False),
    "shorter rows": ((WIDTH - 1, HEIGHT), False),
    "smaller tile": ((8, 8), True),
}


@pytest.mark.parametrize("data", ENDS_EARLY.values(), ids=ENDS_EARLY)
def test_memory_that_is_not_filled_is_not_shown(data: bytes) -> None:
    """It may hold another client's picture, of which the embedding would tell."""
    with pytest.raises(CorruptImage, match="ends before its last row"):
        DECODER.decode(data)


@pytest.mark.parametrize(("size", "tiled"), SMALL_JPEGS.values(), ids=SMALL_JPEGS)
def test_what_a_jpeg_smaller_than_its_part_does_not_fill_is_black(size: tuple[int, int], tiled: bool) -> None:
    """libtiff fills it, where older ones left what stood there before: here white."""
    white = _of_one_part(JPEG, _jpeg(JPEG, 64 if tiled else WIDTH, HEIGHT), tiled)
    expected = np.zeros((HEIGHT, WIDTH, 3))
    expected[: size[1], : size[0]] = 255
    for _ in range(3):
        assert DECODER.decode(white).pixels.min() == 255
        np.testing.assert_array_equal(DECODER.decode(_of_one_part(JPEG, _jpeg(JPEG, *size), tiled)).pixels, expected)


@pytest.mark.parametrize("colour", [0, 1])
@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize(("compression", "make"), [*[(fax, _fax) for fax in FAX], (JPEG, _jpeg)])
def test_what_is_filled_is_read(compression: int, make: Callable[..., bytes], tiled: bool, colour: int) -> None:
    """Also where it is filled with what may have stood there."""
    data = _of_one_part(compression, make(compression, 64 if tiled else WIDTH, HEIGHT, colour), tiled)
    expected = np.full((HEIGHT, WIDTH, 3), 255 * colour)
    np.testing.assert_array_equal(DECODER.decode(data).pixels, expected)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_further_strips_are_read(mode: str) -> None:
    image = Image.fromarray(picture(83, 61)).convert(mode)
    data = encode(image, "TIFF", compression="jpeg", tiffinfo={278: 16})
    with Image.open(io.BytesIO(data)) as expected:
        np.testing.assert_array_equal(DECODER.decode(data).pixels, np.asarray(expected.convert("RGB")))


@pytest.mark.parametrize("number", [MAX_SCANS, MAX_SCANS + 1])
def test_a_jpeg_in_a_tiff_has_few_scans(number: int) -> None:
    content = scans(0xC2, 1, WIDTH, [(0, 0, 0, 0, b"\0")] * number)
    content = content.replace(bytes([0, WIDTH, 0, WIDTH]), bytes([0, HEIGHT, 0, WIDTH]))
    if number > MAX_SCANS:
        with pytest.raises(CorruptImage):
            DECODER.decode(_of_one_part(JPEG, content))
    else:
        assert DECODER.decode(_of_one_part(JPEG, content)).pixels.shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("frame", [0xC9, 0xCA])
def test_a_jpeg_in_a_tiff_is_not_arithmetic_coded(frame: int) -> None:
    """Its pixels take ten times as long as any others."""
    content = _jpeg(JPEG, WIDTH, HEIGHT).replace(b"\xff\xc0", bytes([0xFF, 0xFF, frame]))
    with pytest.raises(UnsupportedFormat, match="arithmetic"):
        DECODER.decode(_of_one_part(JPEG, content))


def test_a_lack_of_files_is_not_blamed_on_the_client() -> None:
    data = _of_one_part(GROUP_4, _fax(GROUP_4, WIDTH, HEIGHT))
    with open_files(0), pytest.raises(MemoryError):
        DECODER.decode(data)


def _old_jpeg(photometric: int, planar: int = 1, strips: int = 0) -> bytes:
    """A TIFF of 16 x 16 pixels of three samples in one tile, or in strips that all hold the same."""
    content = scans(0xC0, 3, 16, [(0, 63, 0, 0, bytes(9))], 3)
    tags = {256: 16, 257: 16, 258: 8, 259: OLD_JPEG, 262: photometric, 277: 3, 284: planar}
    tags |= {278: 16 if strips == 1 else 8} if strips else {322: 16, 323: 16}
    entries: list[Tag] = [(tag, 4, 1, value) for tag, value in tags.items()]
    entries, parts = [*entries, (530, 3, 2, b"\1\0\1\0")], max(strips, 1)
    begin = 8 + 2 + 12 * (len(entries) + 2) + 4
    places = struct.pack(f"<{2 * parts}I", *[begin] * parts, *[9] * parts) if parts > 1 else b""
    starts, sizes = (begin, begin + 4 * parts) if parts > 1 else (begin, len(content))
    first = 273 if strips else 324
    return tiff([*entries, (first, 4, parts, starts), (279 if strips else 325, 4, parts, sizes)], places + content)


@pytest.mark.parametrize("photometric", [2, 6])
@pytest.mark.parametrize("layout", [(1, 0), (1, 1), (2, 1)], ids=["tile", "strip", "planes that are none"])
def test_an_old_jpeg_is_read(photometric: int, layout: tuple[int, int]) -> None:
    assert (DECODER.decode(_old_jpeg(photometric, *layout)).pixels == 128).all()


@pytest.mark.parametrize("odd", [(1, 1), (5, 1), (8, 1), (6, 2, 6)], ids=["gray", "CMYK", "LAB", "planes"])
def test_an_old_jpeg_that_pillow_and_libtiff_read_otherwise_is_refused(odd: tuple[int, ...]) -> None:
    """Pillow would read behind the memory of the tile, and libtiff decode each strip's predecessors anew."""
    with pytest.raises(UnsupportedFormat, match="samples stored"):
        DECODER.decode(_old_jpeg(*odd))


@pytest.mark.parametrize(
    "photometric",
    [(11, 1, struct.pack("<f", 6)), (13, 1, 6), (3, 2, struct.pack("<HH", 6, 2))],
    ids=["fraction", "directory", "two numbers"],
)
def test_colours_that_pillow_alone_knows_do_not_show_the_memory_behind_a_tile(
    photometric: tuple[int, int, bytes | int],
) -> None:
    """It would take each pixel's three bytes for four."""
    content = zlib.compress(bytes(64 * 64 * 3))
    tags = {256: 64, 257: 64, 258: 8, 259: 8, 277: 3, 322: 64, 323: 64, 324: 8 + 2 + 12 * 10 + 4, 325: len(content)}
    entries = [(tag, 4, 1, value) for tag, value in tags.items()]
    assert DECODER.decode(tiff([*entries, (262, 4, 1, 6)], content)).pixels.shape == (64, 64, 3)
    with pytest.raises(CorruptImage, match="in two ways"):
        DECODER.decode(tiff([*entries, (262, *photometric)], content))


def test_planes_of_a_palette_and_alpha_are_refused() -> None:
    """Pillow would find alpha zero everywhere."""
    content = zlib.compress(b"\1\xff")
    begin = 8 + 2 + 12 * 12 + 4
    values = {256: 2, 257: 1, 258: 8, 259: 8, 262: 3, 277: 2, 278: 1, 284: 2, 338: 2}
    tags: list[Tag] = [(tag, 3, 1, value) for tag, value in values.items()]
    tags += [(273, 4, 2, begin), (279, 4, 2, begin + 8), (320, 3, 768, begin + 16)]
    tail = struct.pack("<4I", *[begin + 16 + 2 * 768] * 2, *[len(content)] * 2) + bytes(2 * 768) + content
    with pytest.raises(UnsupportedFormat, match="samples stored"):
        DECODER.decode(tiff(tags, tail))
