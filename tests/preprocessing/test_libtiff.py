"""What libtiff does not fill shows nobody's memory, and what it fills is read."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from service.errors import CorruptImage
from service.preprocessing.decode import Decoder
from service.preprocessing.libtiff import MAX_SCANS
from tests.hostile_images import scans, tiff
from tests.images import encode, picture

DECODER = Decoder(2**25, 50_000_000)
WIDTH, HEIGHT = 61, 48
RUN_LENGTHS, GROUP_4, JPEG = 2, 4, 7
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
    "fewer rows": _of_one_part(JPEG, _jpeg(JPEG, WIDTH, HEIGHT - 1)),
    "shorter rows": _of_one_part(JPEG, _jpeg(JPEG, WIDTH - 1, HEIGHT)),
    "smaller tile": _of_one_part(JPEG, _jpeg(JPEG, 8, 8), tiled=True),
}


@pytest.mark.parametrize("data", ENDS_EARLY.values(), ids=ENDS_EARLY)
def test_memory_that_is_not_filled_is_not_shown(data: bytes) -> None:
    """It may hold another client's picture, of which the embedding would tell."""
    with pytest.raises(CorruptImage, match="ends before its last row"):
        DECODER.decode(data)


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
