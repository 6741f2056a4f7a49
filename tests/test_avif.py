"""The frame that an AVIF's decoder takes memory for is found, whatever the boxes say of the image."""

import functools
import struct

import pytest
from PIL import Image

from service.avif import MAX_HIDDEN_FRAMES, MAX_PARTS, largest_frame
from service.decode import Decoder
from service.errors import CorruptImage, TooManyPixels, UnsupportedFormat
from tests.hostile_images import lying_avif


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize("frames", [1, 2])
def test_an_avif_is_as_large_as_its_frame(mode: str, frames: int) -> None:
    following = [Image.new(mode, (70, 70), 9)] * (frames - 1)
    data = lying_avif(70, 64, mode, save_all=frames > 1, append_images=following)
    assert largest_frame(data) == (70, 70)
    with pytest.raises(TooManyPixels, match="70x70"):
        Decoder(2**25, 4899).decode(data)


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content) + 8) + kind + content


def _avif_of(*pieces: bytes, kind: bytes = b"av01", items: int = 1) -> bytes:
    """An AVIF of equal items whose pieces are within its metadata, the first of them last."""
    lengths = [len(piece) for piece in pieces]
    places = [struct.pack(">II", sum(lengths[number + 1 :]), length) for number, length in enumerate(lengths)]
    numbers, count = range(7, 7 + items), struct.pack(">H", items)
    extents = [struct.pack(">HHHH", number, 1, 0, len(pieces)) + b"".join(places) for number in numbers]
    kinds = [_box(b"infe", b"\2\0\0\0" + struct.pack(">HH", number, 0) + kind + b"\0") for number in numbers]
    iloc = _box(b"iloc", b"\1\0\0\0\x44\0" + count + b"".join(extents))
    iinf = _box(b"iinf", bytes(4) + count + b"".join(kinds))
    content = bytes(4) + iloc + iinf + _box(b"idat", b"".join(pieces[::-1]))
    return _box(b"ftyp", b"avif" + bytes(4)) + _box(b"meta", content)


def _av1_unit(bits: str) -> bytes:
    """A sequence header behind another unit, with an extension and a size of two bytes."""
    content = int(bits.ljust(800, "0"), 2).to_bytes(100, "big")
    return b"\x12\0" + b"\x0e\0\xe4\0" + content


SIZE = f"{9:04b}{8:04b}{640 - 1:010b}{480 - 1:09b}"
SEQUENCE_HEADERS = {
    "reduced": "00011" + "01000",
    "full": "00000" + "0" + "0" + "00000" + "0" * 12 + "01000" + "0",
    "full of two points and their delays": "00000" + "0" + "1" + "00001" + 2 * ("1" * 12 + "01000" + "1" + "10101"),
    "full with timing": "00000" + "1" + "1" * 64 + "1" + "0001" + "101" + "0" + "0" + "00000" + "0" * 12 + "00111",
    "full with a decoder's model": "00000" + "1" + "1" * 64 + "0" + "1" + "00011" + "1" * 42 + "0" + "00000"
    + "0" * 12 + "00111" + "1" + "1" * 9,
}  # fmt: skip


@pytest.mark.parametrize("fields", SEQUENCE_HEADERS.values(), ids=SEQUENCE_HEADERS)
def test_the_frame_is_found_in_every_form_of_sequence_header(fields: str) -> None:
    unit = _av1_unit(fields + SIZE)
    for pieces in ([unit], [unit[:9], unit[9:]]):
        assert largest_frame(_avif_of(*pieces)) == (640, 480)
    assert largest_frame(_avif_of(unit, kind=b"mime")) == (0, 0)


def test_an_avif_of_too_many_deep_or_overlapping_pieces_does_no_harm() -> None:
    deep = functools.reduce(lambda inner, _: _box(b"trak", inner), range(2000), b"")
    assert largest_frame(_box(b"ftyp", b"avif") + _box(b"moov", deep)) == (0, 0)
    with pytest.raises(UnsupportedFormat, match="parts"):
        largest_frame(_avif_of(b"\x12\0" * MAX_PARTS))
    whole = _avif_of(_av1_unit(""), b"")
    with pytest.raises(CorruptImage, match="more bytes"):
        largest_frame(whole.replace(struct.pack(">II", 0, 106), struct.pack(">II", 0, 10**6)))


def test_hidden_frames_are_few() -> None:
    """Each may be of 50 megapixels and a hundred bytes, and the decoder lets no other thread run meanwhile."""
    header, frame, shown_again = _av1_unit(SEQUENCE_HEADERS["reduced"] + SIZE), b"\x32\x01\0", b"\x1a\x01\x80"
    assert largest_frame(_avif_of(header + frame * MAX_HIDDEN_FRAMES + shown_again)) == (640, 480)
    too_many = _avif_of(header + frame * (MAX_HIDDEN_FRAMES + 1) + shown_again)
    # As a picture put together of many others can be: they may be few in each of them, and have their bytes in common.
    together = _avif_of(header + frame + shown_again, items=MAX_HIDDEN_FRAMES + 1)
    for data in (too_many, together):
        with pytest.raises(UnsupportedFormat, match="more than 8 hidden frames"):
            largest_frame(data)
