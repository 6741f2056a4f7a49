"""How large the frames are that the decoder of an AVIF takes memory for, whatever its boxes say of the image.

Comes in: the bytes of an AVIF, hostile ones included. Goes out: the size that its AV1 sequence headers announce, for
colour and for alpha. It reads no pixels and must not know what is too large.

Source: ISO/IEC 14496-12 (boxes), 23008-12 (items), and sections 5.3 to 5.5 of the AV1 bitstream specification.
"""

import io
import struct
from collections import Counter
from collections.abc import Callable, Iterator

from service.errors import CorruptImage, UnsupportedFormat

MAX_PARTS = 1 << 14  # boxes, extents and units of AV1; frames of a track
# Which are decoded before the one that is shown: a layered image has up to 3, for colour and for alpha.
MAX_HIDDEN_FRAMES = 8
_PATH_TO_SAMPLES = (b"trak", b"mdia", b"minf", b"stbl")
_SEQUENCE_HEADER = 1
_FRAMES = (3, 6)
_LONGEST_HEADER = 512  # bytes, more than all its fields up to the size of frames can take


def largest_frame(data: bytes) -> tuple[int, int]:
    """Width and height of the largest frame that the AV1 of an AVIF announces; 0, 0 where it announces none.

    Raises:
        CorruptImage: its items announce more bytes than there are.
        UnsupportedFormat: it has too many parts to be looked at, or too many frames.
    """
    steps = iter(range(MAX_PARTS))
    streams: list[list[tuple[int, int]]] = []
    for kind, start, end in _boxes(data, 0, len(data), steps):
        if kind == b"meta":
            streams += _item_extents(data, start + 4, end, steps)
        elif kind == b"moov":
            streams += _first_samples(data, start, end, steps, _PATH_TO_SAMPLES)
    sizes = [(0, 0)]
    total = hidden = 0
    # Equal items may share their bytes, but no two need to be read then.
    for extents, times in Counter(map(tuple, streams)).items():
        total += sum(size for _, size in extents)
        if total > len(data):
            raise CorruptImage("the AVIF's items announce more bytes than it has")
        stream = b"".join(data[start : start + size] for start, size in extents)
        units = list(_av1_units(stream, steps))
        sizes += [_frame_size(unit) for unit_kind, unit in units if unit_kind == _SEQUENCE_HEADER]
        hidden += times * max(0, sum(unit_kind in _FRAMES for unit_kind, _ in units) - 1)
    if hidden > MAX_HIDDEN_FRAMES:
        raise UnsupportedFormat(f"an AVIF of more than {MAX_HIDDEN_FRAMES} hidden frames is not read; save it anew")
    return max(sizes, key=lambda size: size[0] * size[1])


def _count(steps: Iterator[int]) -> None:
    if next(steps, None) is None:
        raise UnsupportedFormat(f"an AVIF of more than {MAX_PARTS} parts is not read; save it anew")


def _boxes(data: bytes, start: int, end: int, steps: Iterator[int]) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of the content of each box."""
    while start + 8 <= end:
        _count(steps)
        size, kind = struct.unpack_from(">I4s", data, start)
        content = start + 8
        if size == 1:
            size = int.from_bytes(data[content : content + 8], "big")
            content += 8
        start = min(start + size, end) if size else end
        if start < content:
            return
        yield kind, content, start


def _item_extents(data: bytes, start: int, end: int, steps: Iterator[int]) -> Iterator[list[tuple[int, int]]]:
    """Where the bytes of each coded item are: start and size of its pieces."""
    boxes = {kind: (start, end) for kind, start, end in _boxes(data, start, end, steps)}
    coded = set(_coded_items(data, *boxes.get(b"iinf", (0, 0)), steps))
    place, end = boxes.get(b"iloc", (0, 0))
    box = io.BytesIO(data[place:end])

    def number(size: int) -> int:
        return int.from_bytes(box.read(size), "big")

    version, _, sizes, more_sizes = number(1), number(3), number(1), number(1)
    index_size = more_sizes & 15 if version in (1, 2) else 0
    for _ in range(number(4 if version == 2 else 2)):
        _count(steps)
        item = number(4 if version == 2 else 2)
        inside = version in (1, 2) and number(2) & 15 == 1
        number(2)  # the file it is in: this one
        base = number(more_sizes >> 4) + (boxes.get(b"idat", (0, 0))[0] if inside else 0)
        extents = []
        for _ in range(number(2)):
            _count(steps)
            number(index_size)
            extents.append((base + number(sizes >> 4), number(sizes & 15)))
        if item in coded:
            yield extents


def _coded_items(data: bytes, start: int, end: int, steps: Iterator[int]) -> Iterator[int]:
    """The numbers of the items that are AV1, from what a box of item information holds."""
    for kind, place, _ in _boxes(data, start + (8 if data[start : start + 1] != b"\0" else 6), end, steps):
        wide = data[place : place + 1] == b"\3"  # the number
        behind = place + (8 if wide else 6)
        if kind == b"infe" and data[behind + 2 : behind + 6] == b"av01":
            yield int.from_bytes(data[place + 4 : behind], "big")


def _first_samples(
    data: bytes, start: int, end: int, steps: Iterator[int], path: tuple[bytes, ...]
) -> Iterator[list[tuple[int, int]]]:
    """Where the first frame of each track is, start and size, in the boxes that `path` leads down to."""
    places, sizes = [], []
    chunks = samples = 0
    for kind, place, stop in _boxes(data, start, end, steps):
        entry = data[place : min(place + 16, stop)]
        if kind in path[:1]:
            yield from _first_samples(data, place, stop, steps, path[1:])
        elif kind == b"stsc":
            samples = max([samples, *_samples_a_chunk(data, place + 8, stop, steps)])
        elif kind in (b"stco", b"co64"):
            chunks = max(chunks, int.from_bytes(entry[4:8], "big"))
            places.append(int.from_bytes(entry[8 : 12 if kind == b"stco" else 16], "big"))
        elif kind == b"stsz":
            sizes.append(int.from_bytes(entry[4:8], "big") or int.from_bytes(entry[12:16], "big"))
    if chunks * samples > MAX_PARTS:
        raise UnsupportedFormat(f"an AVIF of more than {MAX_PARTS} frames is not read; send one of them")
    for place in places:
        yield [(place, max(sizes, default=0))]


def _samples_a_chunk(data: bytes, start: int, end: int, steps: Iterator[int]) -> Iterator[int]:
    for entry in range(start, end - 11, 12):
        _count(steps)
        yield int.from_bytes(data[entry + 4 : entry + 8], "big")


def _av1_units(stream: bytes, steps: Iterator[int]) -> Iterator[tuple[int, bytes]]:
    """Kind and beginning of each unit (OBU)."""
    place = 0
    while place < len(stream):
        _count(steps)
        header = stream[place]
        place += 2 if header & 4 else 1
        size = len(stream) - place
        if header & 2:
            size = 0
            for number, byte in enumerate(stream[place : place + 8]):
                size |= (byte & 127) << 7 * number
                place += 1
                if byte < 128:
                    break
        yield header >> 3 & 15, stream[place : place + min(size, _LONGEST_HEADER)]
        place += size


def _frame_size(header: bytes) -> tuple[int, int]:
    """Width and height of the largest frame, from a sequence header of AV1; what is cut off it counts as zeros."""
    value, left = int.from_bytes(header.ljust(_LONGEST_HEADER, b"\0"), "big"), 8 * _LONGEST_HEADER

    def bits(number: int) -> int:
        nonlocal left
        left -= number
        return value >> left & (1 << number) - 1

    bits(4)  # profile, still picture
    if bits(1):  # a reduced header
        bits(5)
    else:
        _skip_operating_points(bits)
    width_bits, height_bits = bits(4) + 1, bits(4) + 1
    return bits(width_bits) + 1, bits(height_bits) + 1


def _skip_operating_points(bits: Callable[[int], int]) -> None:
    """Pass over what a full sequence header has between its first flags and the size of its frames."""
    delay_bits = 0
    if bits(1):  # timing
        bits(64)
        if bits(1):  # equal intervals, whose length begins with as many zeros as it has bits
            zeros = next((zeros for zeros in range(32) if bits(1)), 0)
            bits(zeros)
        if bits(1):  # a model of the decoder
            delay_bits = bits(5) + 1
            bits(42)
    display_delays = bits(1)
    for _ in range(bits(5) + 1):
        bits(12)
        if bits(5) > 7:  # levels with tiers
            bits(1)
        if delay_bits and bits(1):
            bits(2 * delay_bits + 1)
        if display_delays and bits(1):
            bits(4)
