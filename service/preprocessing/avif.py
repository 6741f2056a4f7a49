"""Where in the boxes of an AVIF its AV1 is, and what its decoder takes memory and time for, whatever they say of it.

Comes in: the bytes of an AVIF, hostile ones included. Goes out: the frames that its AV1 announces, for colour, alpha
and each piece that a picture is put together of. It reads no pixels and must not know what is too large.

Source: ISO/IEC 14496-12 (boxes) and 23008-12 (items).
"""

import io
import struct
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import islice

from service.errors import CorruptImage, UnsupportedFormat
from service.preprocessing.av1 import Frames, frames_of

MAX_PARTS = 1 << 14  # boxes, extents and units of AV1; frames of a track
_PATH_TO_SAMPLES = (b"trak", b"mdia", b"minf", b"stbl")


def announced_frames(data: bytes) -> Frames:
    """The largest frame that the AV1 of an AVIF announces, and the pixels of all that it has.

    Raises:
        CorruptImage: its items announce more bytes than there are.
        UnsupportedFormat: it has too many parts to be looked at, or frames of several sizes.
    """
    steps = iter(range(MAX_PARTS))
    streams: list[list[tuple[int, int]]] = []
    for kind, start, end in _boxes(data, 0, len(data), steps):
        if kind == b"meta":
            streams += _item_extents(data, start + 4, end, steps)
        elif kind == b"moov":
            streams += _first_samples(data, start, end, steps, _PATH_TO_SAMPLES)
    largest = [(0, 0)]
    total = pixels = 0
    # Equal items may share their bytes, but no two need to be read then. They are all decoded, and counted as often: a
    # frame of a few pixels takes as long as one of thousands.
    for extents, times in Counter(map(tuple, streams)).items():
        total += sum(size for _, size in extents)
        if total > len(data):
            raise CorruptImage("the AVIF's items announce more bytes than it has")
        stream = b"".join(data[start : start + size] for start, size in extents)
        frames = frames_of(stream, partial(_count, steps, times))
        largest.append(frames.largest)
        pixels += times * frames.pixels
    return Frames(max(largest, key=lambda size: size[0] * size[1]), pixels)


def _count(steps: Iterator[int], number: int = 1) -> None:
    if next(islice(steps, number - 1, None), None) is None:
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
    chunks = 0
    runs: list[tuple[int, int]] = []
    for kind, place, stop in _boxes(data, start, end, steps):
        entry = data[place : min(place + 16, stop)]
        if kind in path[:1]:
            yield from _first_samples(data, place, stop, steps, path[1:])
        elif kind == b"stsc":
            runs += _runs_of_chunks(data, place + 8, stop, steps)
        elif kind in (b"stco", b"co64"):
            chunks = max(chunks, int.from_bytes(entry[4:8], "big"))
            places.append(int.from_bytes(entry[8 : 12 if kind == b"stco" else 16], "big"))
        elif kind == b"stsz":
            sizes.append(int.from_bytes(entry[4:8], "big") or int.from_bytes(entry[12:16], "big"))
    if _samples(runs, chunks) > MAX_PARTS:
        raise UnsupportedFormat(f"an AVIF of more than {MAX_PARTS} frames is not read; send one of them")
    for place in places:
        yield [(place, max(sizes, default=0))]


def _runs_of_chunks(data: bytes, start: int, end: int, steps: Iterator[int]) -> Iterator[tuple[int, int]]:
    """The first chunk of each run of chunks with equally many frames, and how many each of them has."""
    for entry in range(start, end - 11, 12):
        _count(steps)
        yield int.from_bytes(data[entry : entry + 4], "big"), int.from_bytes(data[entry + 4 : entry + 8], "big")


def _samples(runs: list[tuple[int, int]], chunks: int) -> int:
    """The frames of all chunks, which count from 1; as many as there can be where the runs are in no order."""
    firsts = [first for first, _ in runs]
    if firsts != sorted(set(firsts)):
        return chunks * max(frames for _, frames in runs)
    ends = [*firsts[1:], chunks + 1][: len(runs)]
    return sum(max(0, min(end, chunks + 1) - first) * frames for (first, frames), end in zip(runs, ends, strict=True))
