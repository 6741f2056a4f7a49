"""The frame that an AVIF's decoder takes memory for is found, whatever the boxes say of the image."""

import functools
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from PIL import AvifImagePlugin, Image

from service.errors import CorruptImage, TooManyPixels, UnsupportedFormat
from service.preprocessing.av1 import Frames
from service.preprocessing.avif import MAX_PARTS, announced_frames
from service.preprocessing.decode import MAX_FRAMES_TIMES, Decoder
from tests.hostile_images import lying_avif
from tests.images import encode


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize("frames", [1, 2])
def test_an_avif_is_as_large_as_its_frame(mode: str, frames: int) -> None:
    following = [Image.new(mode, (70, 70), 9)] * (frames - 1)
    data = lying_avif(70, 64, mode, save_all=frames > 1, append_images=following)
    assert announced_frames(data).largest == (70, 70)
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


def _av1_frame(bits: str, kind: int = 6) -> bytes:
    return bytes([kind << 3 | 2, 9]) + int(bits.ljust(72, "0"), 2).to_bytes(9, "big")


SIZE = f"{9:04b}{8:04b}{640 - 1:010b}{480 - 1:09b}"
REDUCED = "00011" + "01000" + SIZE
ONE_POINT = "00000" + "0" * 12
# A sequence header, and what the header of a key frame that is shown has before it tells whether it has its own size.
HEADERS = {
    "full": ("00000" + "0" + "0" + ONE_POINT + "01000" + "0" + SIZE + "0" * 8 + "0" + "00", "0" + "00" + "1" + "0"),
    "full of two points and their delays": (
        "00000" + "0" + "1" + "00001" + 2 * ("1" * 12 + "01000" + "1" + "10101") + SIZE + "0" * 8 + "111" + "1",
        "0" + "00" + "1" + "0" + "0",
    ),
    "full with timing": (
        "00000" + "1" + "1" * 64 + "1" + "0001" + "101" + "0" + "0" + ONE_POINT + "00111" + SIZE + "0" * 8 + "0" + "1"
        + "1",
        "0" + "00" + "1" + "0" + "1" + "1",
    ),
    "full with a decoder's model, and numbers of frames": (
        "00000" + "1" + "1" * 64 + "0" + "1" + "00011" + "1" * 37 + "00010" + "0" + ONE_POINT + "00111" + "1" + "1" * 9
        + SIZE + "1" + "0001" + "010" + "0" * 7 + "0" + "01" + "01",
        "0" + "00" + "1" + "111" + "0" + "111111",
    ),
    "full with a decoder's model and equal intervals": (
        "00000" + "1" + "1" * 64 + "1" + "1" + "1" + "00011" + "1" * 42 + "0" + ONE_POINT + "00111" + "0" + SIZE
        + "0" * 8 + "0" + "01" + "1",
        "0" + "00" + "1" + "0" + "1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fields", [REDUCED, *(fields for fields, _ in HEADERS.values())], ids=["reduced", *HEADERS])
def test_the_frame_is_found_in_every_form_of_sequence_header(fields: str) -> None:
    unit = _av1_unit(fields)
    for pieces in ([unit], [unit[:9], unit[9:]]):
        assert announced_frames(_avif_of(*pieces)).largest == (640, 480)
    assert announced_frames(_avif_of(unit, kind=b"mime")) == Frames((0, 0), 0)


@pytest.mark.parametrize(("sequence", "frame"), HEADERS.values(), ids=HEADERS)
@pytest.mark.parametrize("kind", [3, 6, 7])
def test_a_frame_with_a_size_of_its_own_is_found(sequence: str, frame: str, kind: int) -> None:
    """It may be far over the one that the sequence announces, which decoders do not mind."""
    announced = _av1_unit(sequence)
    for sound in (frame + "0", "1" + "1" * 40):  # or a frame that is shown once more
        assert announced_frames(_avif_of(announced + _av1_frame(sound, kind))) == Frames((640, 480), 640 * 480)
    switch = "0" + "11"
    for own in (frame + "1", switch):
        with pytest.raises(UnsupportedFormat, match="several sizes"):
            announced_frames(_avif_of(announced + _av1_frame(own, kind)))


def test_large_ones_are_decoded_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each in one thread, as any other format; Pillow lets other threads run meanwhile, since version 13."""
    meeting = threading.Barrier(2)
    load = Decoder._load

    def load_together(*arguments: Any) -> Any:
        meeting.wait(60)
        return load(*arguments)

    monkeypatch.setattr(Decoder, "_load", load_together)
    with ThreadPoolExecutor(2) as threads:
        decoded = list(threads.map(Decoder(2**25, 2**21).decode, [lying_avif(1100, 1100)] * 2))
    assert [image.pixels.shape for image in decoded] == [(1100, 1100, 3)] * 2
    assert AvifImagePlugin.DEFAULT_MAX_THREADS == 1


def test_colours_behind_a_gray_header_are_refused() -> None:
    """Pillow would take three samples of one pixel for three pixels."""
    data = bytearray(encode(Image.new("RGB", (9, 9)), "AVIF"))
    data[data.index(b"av1C") + 6] |= 0x10
    with pytest.raises(CorruptImage, match="other samples"):
        Decoder(2**25, 10**6).decode(bytes(data))


def test_an_avif_of_too_many_deep_or_overlapping_pieces_does_no_harm() -> None:
    deep = functools.reduce(lambda inner, _: _box(b"trak", inner), range(2000), b"")
    assert announced_frames(_box(b"ftyp", b"avif") + _box(b"moov", deep)) == Frames((0, 0), 0)
    with pytest.raises(UnsupportedFormat, match="parts"):
        announced_frames(_avif_of(b"\x12\0" * MAX_PARTS))
    with pytest.raises(UnsupportedFormat, match="parts"):  # equal ones are read once, and decoded as often as they are
        announced_frames(_avif_of(b"\x12\0" * (MAX_PARTS // 50), items=50))
    whole = _avif_of(_av1_unit(""), b"")
    with pytest.raises(CorruptImage, match="more bytes"):
        announced_frames(whole.replace(struct.pack(">II", 0, 106), struct.pack(">II", 0, 10**6)))


def _film(chunks: int, *runs: tuple[int, int]) -> bytes:
    """A film's first frame, and tables of so many chunks; each run is its first chunk and how many frames they have."""
    kinds = b"".join(struct.pack(">III", first, frames, 1) for first, frames in runs)
    tables = _box(b"stsc", bytes(4) + struct.pack(">I", len(runs)) + kinds)
    tables += _box(b"stsz", bytes(4) + struct.pack(">II", 106, 1))
    tables += _box(b"stco", bytes(4) + struct.pack(">II", chunks, 24))
    boxes = functools.reduce(lambda inner, kind: _box(kind, inner), (b"stbl", b"minf", b"mdia", b"trak"), tables)
    return _box(b"ftyp", b"avis" + bytes(4)) + _box(b"mdat", _av1_unit(REDUCED)) + _box(b"moov", boxes)


def test_the_frames_of_a_film_are_counted_chunk_by_chunk() -> None:
    """Where little moves, one chunk can have thousands, and the next ones few."""
    many = MAX_PARTS // 16
    for chunks, *runs in ((many, (1, 16)), (16, (1, MAX_PARTS - 30), (2, 2)), (9, (1, 1), (10, 10**6))):
        assert announced_frames(_film(chunks, *runs)).largest == (640, 480)
    for chunks, *runs in ((many + 1, (1, 16)), (16, (1, MAX_PARTS - 29), (2, 2)), (9, (2, 2000), (1, 1))):
        with pytest.raises(UnsupportedFormat, match="frames"):
            announced_frames(_film(chunks, *runs))


def test_all_frames_together_are_no_more_than_a_few_images() -> None:
    """Each may be of 50 megapixels and a hundred bytes, and the decoder lets no other thread run meanwhile."""
    header, frame = _av1_unit(REDUCED), _av1_frame("")
    hidden = _avif_of(header + frame * 12)
    # As a picture put together of many others can be, which may have their bytes in common.
    together = _avif_of(header + frame * 3, items=4)
    for data in (hidden, together):
        assert announced_frames(data) == Frames((640, 480), 12 * 640 * 480)
        with pytest.raises(TooManyPixels, match="in all frames of the AVIF"):
            Decoder(2**25, 12 * 640 * 480 // MAX_FRAMES_TIMES - 1).decode(data)
        with pytest.raises(CorruptImage):
            Decoder(2**25, 12 * 640 * 480 // MAX_FRAMES_TIMES).decode(data)
