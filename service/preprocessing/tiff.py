"""The first directory of a TIFF, which EXIF is, too.

Comes in: the bytes of a TIFF, hostile ones included. Goes out: its tags, or a typed fault where they hold more than any
real image needs. It reads no pixels and must not know of Pillow, though of how it reads tags.
"""

import re
import struct
from collections.abc import Iterator, Sequence

from service.errors import CorruptImage, UnsupportedFormat

MAX_TAGS = 1 << 12
MAX_STRIPS = 1 << 15  # or tiles; each takes a decoder some µs to set up
MAX_NUMBER_BYTES = 400_000  # of all other tags; a transfer function, the longest of TIFF 6.0, has 393,216

_TYPE_SIZES = {
    1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8,
}  # fmt: skip
_BYTE_TYPES = (1, 2, 7)  # Pillow makes numbers of all others
# Tags that say how much there is to decode, and how; of all but some, one number. Pillow reads more types than libtiff
# in them, and the first of several numbers; libtiff knows a type that Pillow does not.
_LAYOUT = {*range(256, 260), 262, 266, 273, *range(277, 280), 284, *range(322, 326)}
_LAYOUT_OF_MANY = {258, 259, 273, 279, 324, 325}
_LAYOUT_TYPES = {3, 4, 6, 8, 9, 16}
_WHOLE_NUMBERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_COMPRESSION = 259
# libtiff's own; not WebP, JPEG 2000 and others that few programs write, nor LZMA, whose 10 MB can take 14 s.
_COMPRESSIONS = {1, 2, 3, 4, 5, 6, 7, 8, 32771, 32773, 32809, 32946, 34676, 34677, 50000}
_JPEG = 7
# The beginning of an arithmetic-coded JPEG's frame, which its pixels cannot hold.
_ARITHMETIC_FRAME = re.compile(rb"\xff[\xc9\xca]\0[\x0b-\x26][\x08\x0c]")
_STRIP_AND_TILE_SIZES = (279, 325)
_STRIP_AND_TILE_TAGS = (273, 324, *_STRIP_AND_TILE_SIZES)


def check(data: bytes) -> None:
    """Look at the first directory: its tags must not hold more than the file, nor may its strips or tiles: those do
    that share their bytes.
    """
    total = number_bytes = 0
    seen: set[int] = set()
    for number, (tag, kind, count, values) in enumerate(tags(data)):
        if number == MAX_TAGS:
            raise UnsupportedFormat(f"a TIFF of more than {MAX_TAGS} tags is not read; save it without metadata")
        # Of two tags Pillow takes the last and libtiff the first.
        is_one = kind in _LAYOUT_TYPES and (count == 1 or tag in _LAYOUT_OF_MANY) and tag not in seen
        if tag in _LAYOUT and not is_one:
            raise CorruptImage("the TIFF's tags can be read in two ways")
        seen.add(tag)
        size = count * _TYPE_SIZES.get(kind, 0)
        total += size
        if total > len(data):
            raise CorruptImage("the TIFF's tags announce more bytes than it has")
        is_of_parts = tag in _STRIP_AND_TILE_TAGS
        number_bytes += 0 if is_of_parts or kind in _BYTE_TYPES else size
        if number_bytes > MAX_NUMBER_BYTES or (is_of_parts and count > MAX_STRIPS):
            raise UnsupportedFormat(
                f"a TIFF of more than {MAX_STRIPS} strips or tiles, or {MAX_NUMBER_BYTES} bytes of numbers in other "
                "tags, is not read; save it with larger strips and less metadata"
            )
        if tag == _COMPRESSION:
            _check_compression(data, *numbers(data, kind, 1, values))
        # Some writers announce the last strip as large as the others, and one strip as large as they like.
        if tag in _STRIP_AND_TILE_SIZES and count > 1 and sum(numbers(data, kind, count, values)) > 2 * len(data):
            raise CorruptImage("the TIFF's strips or tiles announce more bytes than it has")


def _check_compression(data: bytes, compression: int = 1) -> None:
    if compression not in _COMPRESSIONS:
        raise UnsupportedFormat(
            f"a TIFF of compression {compression} is not read; save it uncompressed, or with LZW or JPEG"
        )
    # Of 6400 x 6400 pixels it takes 25 s.
    if compression == _JPEG and _ARITHMETIC_FRAME.search(data):
        raise UnsupportedFormat("a TIFF of an arithmetic-coded JPEG is not read; save it with LZW")


def tags(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Tag, type, count and place of the values of each entry of the first directory, as far as it goes."""
    order = _order(data)
    header, number, entry, place = ("8xQ", "Q", "HHQ", "Q") if data[2:3] == b"+" else ("4xI", "H", "HHI", "I")
    try:
        (offset,) = struct.unpack_from(order + header, data)
        (entries,) = struct.unpack_from(order + number, data, offset)
        start, size = offset + struct.calcsize(order + number), struct.calcsize(order + entry + place)
        for position in range(start, min(start + entries * size, len(data)), size):
            tag, kind, count = struct.unpack_from(order + entry, data, position)
            inline = position + struct.calcsize(order + entry)
            (elsewhere,) = struct.unpack_from(order + place, data, inline)
            is_inline = count * _TYPE_SIZES.get(kind, 0) <= struct.calcsize(order + place)
            yield tag, kind, count, inline if is_inline else elsewhere
    except (struct.error, OverflowError):
        return


def numbers(data: bytes, kind: int, count: int, place: int) -> Sequence[int]:
    """So many whole numbers of that type; none where they are not there."""
    try:
        return struct.unpack_from(f"{_order(data)}{count}{_WHOLE_NUMBERS[kind]}", data, place)
    except (KeyError, struct.error, OverflowError):
        return ()


def _order(data: bytes) -> str:
    return "<" if data[:1] == b"I" else ">"
