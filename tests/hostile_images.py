"""Hostile images, made on the spot: small or sound to look at, dear to whoever reads them without bounds.

`NAMES` lists them, `hostile(name)` makes one. None is over the default limit of bytes, nor does any announce more than
the default limit of pixels, but for the frame within an AVIF. The name says what the file holds too much of.
"""

import re
import struct
import zlib
from collections.abc import Callable, Iterable

import numpy as np
from PIL import Image

from service.preprocessing.libtiff import MAX_SCANS
from service.preprocessing.webp import MAX_GROUPS
from tests.images import encode, picture, png_chunk, png_header
from tests.webps import BYTES, ZERO, chunk, extended, frame, packed, riff, stream, vp8l

MANY = 30_000_000
"""Bytes that a hostile file may take, below the default limit of 32 MiB."""

_MAX_SIDE = 65_535  # pixels
_SIDE = 7000  # of a picture just below the default limit of pixels
_TIFF_SIDE = 6500  # of a larger JPEG in a TIFF, libtiff has too much to hold
_TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 13: 4, 16: 8}
Tag = tuple[int, int, int, bytes | int]


def segment(marker: int, content: bytes) -> bytes:
    """One marker segment of a JPEG."""
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def in_jpeg(*segments: bytes) -> bytes:
    """A sound JPEG with these segments behind its first one."""
    sound = encode(Image.fromarray(picture(40, 30)), "JPEG")
    return sound[:20] + b"".join(segments) + sound[20:]


def in_png(*chunks: bytes) -> bytes:
    """A sound PNG with these chunks right behind its header."""
    sound = encode(Image.fromarray(picture(40, 30)), "PNG")
    return sound[:33] + b"".join(chunks) + sound[33:]


def behind_png(*chunks: bytes) -> bytes:
    """A sound PNG with these chunks between its pixels and its end."""
    sound = encode(Image.fromarray(picture(40, 30)), "PNG")
    return sound[:-12] + b"".join(chunks) + sound[-12:]


def ifd(tags: Iterable[Tag], following: int = 0) -> bytes:
    """A little-endian directory of (tag, type, count, value or offset)."""
    packed = [struct.pack("<HHI", *tag[:3]) + _value(tag[3]) for tag in tags]
    return struct.pack("<H", len(packed)) + b"".join(packed) + struct.pack("<I", following)


def _value(value: bytes | int) -> bytes:
    return struct.pack("<I", value) if isinstance(value, int) else value.ljust(4, b"\0")


def tiff(tags: Iterable[Tag], tail: bytes = b"", following: int = 0) -> bytes:
    """A TIFF of one directory at 8, and what stands behind it."""
    return b"II*\0" + struct.pack("<I", 8) + ifd(sorted(tags), following) + tail


def gray_tags(width: int, height: int, compression: int = 1) -> list[Tag]:
    """What a TIFF of 8-bit gray says of itself, without its strips."""
    values = {256: width, 257: height, 258: 8, 259: compression, 262: 1, 277: 1}
    return [(tag, 4, 1, value) for tag, value in values.items()]


_PIXEL = [*gray_tags(1, 1), (273, 4, 1, 8), (279, 4, 1, 1)]
_IN_HEADER: list[Tag] = [(324, 4, 1, 8), (325, 4, 1, 99)]  # where and how long a tile is, for want of another place


def _pixel_tiff(*tags: Tag, tail: bytes = b"", compression: int = 1) -> bytes:
    """A TIFF of one pixel and these tags, which take the place of its own."""
    own = {tag[0]: tag for tag in [*_PIXEL, (259, 4, 1, compression)]}
    return tiff([*[own[tag] for tag in own if tag not in {tag[0] for tag in tags}], *tags], tail)


def tiff_of_tags(number: int) -> bytes:
    return _pixel_tiff(*[(40_000 + index, 4, 1, 0) for index in range(number - 8)])


def overlapping_tags(count: int, size: int) -> list[Tag]:
    """Many tags that all hold the same bytes from 8 on."""
    return [(40_000 + number, 7, size, 8) for number in range(count)]


def exif(*tags: Tag, size: int = 0) -> bytes:
    return b"Exif\0\0" + tiff(tags).ljust(size, b"\0")


def scans(
    marker: int, components: int, side: int, script: Iterable[tuple[int, int, int, int, bytes]], together: int = 1
) -> bytes:
    """A JPEG of nothing but scans, each (spectral start, end, high bit, low bit, entropy-coded data)."""
    frame = struct.pack(">BHHB", 8, side, side, components)
    frame += b"".join(bytes([number, 0x11, 0]) for number in range(1, components + 1))
    tables = segment(0xDB, b"\0" + b"\1" * 64)
    # DC: one code, of no bits; AC: an end of band and the longest run of them
    tables += segment(0xC4, b"\0\1" + bytes(15) + b"\0") + segment(0xC4, b"\x10\1\1" + bytes(14) + b"\0\xe0")
    header = bytes([together]) + b"".join(bytes([number, 0]) for number in range(1, together + 1))
    shown = [
        segment(0xDA, header + bytes([start, end, high << 4 | low])) + data for start, end, high, low, data in script
    ]
    return b"\xff\xd8" + tables + segment(marker, frame) + b"".join(shown) + b"\xff\xd9"


def _scan_bomb(marker: int, number: int, data: bytes, side: int = _SIDE) -> bytes:
    return scans(marker, 1, side, [(0, 0, 0, 0, data), *[(1, 63, 0, 0, data)] * number])


def _jpeg_flat(side: int, **options: object) -> bytes:
    return encode(Image.new("RGB", (side, side), (90, 120, 200)), "JPEG", **options)


def _cut_jpeg(**options: object) -> bytes:
    data = _jpeg_flat(_SIDE, **options)
    return data[: data.index(b"\xff\xda") + 200]


def _png_of(width: int, height: int, content: bytes, interlaced: bool = False) -> bytes:
    header = png_header(width, height, 8, 0)
    if interlaced:
        header = header[:8] + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 1))
    return header + png_chunk(b"IDAT", content) + png_chunk(b"IEND", b"")


def _apng(frames: int) -> bytes:
    control = [png_chunk(b"fcTL", struct.pack(">IIIIIHHBB", n, 1, 1, 0, 0, 1, 1, 0, 0)) for n in range(2)]
    content = zlib.compress(b"\0\0")
    return (
        png_header(1, 1, 8, 0) + png_chunk(b"acTL", struct.pack(">II", frames, 0)) + control[0]
        + png_chunk(b"IDAT", content)
        + b"".join(
            png_chunk(b"fcTL", struct.pack(">IIIIIHHBB", 2 * n + 1, 1, 1, 0, 0, 1, 1, 0, 0))
            + png_chunk(b"fdAT", struct.pack(">I", 2 * n + 2) + content)
            for n in range(frames)
        )
        + png_chunk(b"IEND", b"")
    )  # fmt: skip


def _png_bomb(kind: bytes, head: bytes, size: int, times: int) -> bytes:
    return in_png(*[png_chunk(kind, head + zlib.compress(bytes(size), 9))] * times)


def _gif(blocks: bytes, screen: tuple[int, int] = (4, 4), frame: tuple[int, int] = (4, 4), times: int = 1) -> bytes:
    picture_data = b"\2\x16\x84\x1d\x81\x7a\xed\x0f\xa3\x9c\xb4\xda\x8b\xb3\xde\xbc\xfb\x0f\x86\xe2\x48\x96\xe6\x05\0"
    shown = b"," + struct.pack("<HHHHB", 0, 0, *frame, 0) + picture_data
    palette = bytes(range(12))
    return b"GIF89a" + struct.pack("<HHBBB", *screen, 0x81, 0, 0) + palette + blocks + shown * times + b";"


def bmp_of_run_lengths(width: int, height: int, data: bytes, compression: int = 1) -> bytes:
    palette = struct.pack("<I", 0x102030) * (16 if compression == 2 else 256)
    offset = 54 + len(palette)
    header = struct.pack(
        "<IiiHHIIiiII", 40, width, height, 1, 8 // max(compression, 1), compression, len(data), 0, 0, 0, 0
    )
    return b"BM" + struct.pack("<IHHI", offset + len(data), 0, 0, offset) + header + palette + data


def _webp_pixels() -> bytes:
    return encode(Image.fromarray(picture(16, 16)), "WEBP")[12:]


def _webp_of_groups(number: int, code: str) -> bytes:
    """A lossless WebP of 1024 x 1024 pixels with so many groups of code tables."""
    return riff(vp8l(1024, 1024, stream([block % number for block in range(65_536)], code)))


def _animated_webp(frames: int) -> bytes:
    sound = encode(Image.new("RGB", (16, 16)), "WEBP", lossless=True)[12:]
    return extended(2, chunk(b"ANIM", bytes(6)), *[frame(sound)] * frames)


def _tiff_of_two_readings() -> bytes:
    """Pillow takes it for a TIFF whose directory is at 524288, libtiff for a BigTIFF with one at 16."""
    big = [(256, 1), (257, 1), (258, 8), (259, 8), (262, 1), (273, 8), (279, 1)]
    entries = [struct.pack(">HHQQ", tag, 4, 1, value << 32) for tag, value in big]
    entries += [struct.pack(">HHQQ", 40_000 + n, 7, 10**6, 8) for n in range(1000)]
    head = b"MM\0+\0\x08\0\0" + struct.pack(">QQ", 16, len(entries)) + b"".join(entries) + bytes(8)
    small = [struct.pack(">HHII", tag, 4, 1, value) for tag, value in big]
    return head.ljust(524_288, b"\0") + struct.pack(">H", len(small)) + b"".join(small) + bytes(2 * 10**6)


def tiff_of_strips(number: int, compression: int = 1, kind: int = 4, width: int = 1, height: int = 1000) -> bytes:
    size = 8 + 2 + 9 * 12 + 4
    tags = [
        *gray_tags(width, height, compression),
        (278, 4, 1, 1),
        (273, kind, number, size),
        (279, kind, number, size),
    ]
    return tiff(tags, bytes(2 * number * _TYPE_SIZES[kind]))


def tiff_of_tiles(width: int, height: int, tile_width: int, tile_height: int, orientation: int = 1) -> bytes:
    """Black; tiles begin at the image's upper left corner and stand out over its other edges."""
    number = -(-width // tile_width) * -(-height // tile_height)
    tile = zlib.compress(bytes(tile_width * tile_height), 9)
    tags = [*gray_tags(width, height, 8), (322, 4, 1, tile_width), (323, 4, 1, tile_height), (274, 4, 1, orientation)]
    places = 8 + 2 + (len(tags) + 2) * 12 + 4
    begin = places + 8 * number
    starts = struct.pack(f"<{number}I", *range(begin, begin + number * len(tile), len(tile)))
    sizes = struct.pack("<I", len(tile)) * number
    if number == 1:
        return tiff([*tags, (324, 4, 1, begin), (325, 4, 1, len(tile))], bytes(8) + tile)
    return tiff(
        [*tags, (324, 4, number, places), (325, 4, number, places + 4 * number)], starts + sizes + tile * number
    )


def _tiff_of_shared_strips(number: int) -> bytes:
    """Each is the whole file, with its bits to be turned around, and only its first bytes become pixels."""
    size = 2**20
    tags = [*gray_tags(1, number, 32773), (266, 3, 1, 2), (278, 4, 1, 1)]
    places = 8 + 2 + (len(tags) + 2) * 12 + 4
    tags += [(273, 4, number, places), (279, 4, number, places + 4 * number)]
    values = struct.pack("<I", 0) * number + struct.pack("<I", size) * number
    return tiff(tags, values).ljust(size, b"\0")


def _tiff_pages(number: int) -> bytes:
    """Directories that each speak of the same pixel and of the next one."""
    size = len(ifd(_PIXEL, 0))
    ends = range(8 + size, 8 + number * size, size)
    return tiff(_PIXEL, b"".join(ifd(_PIXEL, following) for following in (*ends[1:], 0)), ends[0])


def _tiff_loop() -> bytes:
    return tiff(_PIXEL, following=8)


def _tiff_compressed_jpeg(number: int, height: int = _TIFF_SIDE, marker: int = 0xC2) -> bytes:
    return _tiff_of_jpeg(_TIFF_SIDE, height, _scan_bomb(marker, number, b"\0", _TIFF_SIDE))


def _tiff_of_jpeg(width: int, height: int, content: bytes) -> bytes:
    tags = [*gray_tags(width, height, 7), (278, 4, 1, height), (273, 4, 1, 122), (279, 4, 1, len(content))]
    return tiff(tags, content)


def tiff_of_numbers(kind: int, count: int, *tags: int) -> bytes:
    """Many numbers in each of several tags, which Pillow takes an object each for."""
    size = count * _TYPE_SIZES[kind]
    begin = 8 + 2 + (len(_PIXEL) + len(tags)) * 12 + 4
    numbers = struct.pack("<II", 3, 7) * (size * len(tags) // 8 + 1)
    return _pixel_tiff(*[(tag, kind, count, begin + size * place) for place, tag in enumerate(tags)], tail=numbers)


def _bigtiff_of_tags(number: int) -> bytes:
    directory = struct.pack("<Q", number) + struct.pack("<HHQQ", 60_000, 4, 1, 0) * number
    return b"II" + struct.pack("<HHHQ", 43, 8, 0, 16) + directory


def _tiff_subdirectory(key: int, tags: list[Tag], tail: bytes) -> bytes:
    top = [*_PIXEL, (key, 4, 1, 8 + 2 + 9 * 12 + 4)]
    return tiff(top, ifd(tags) + tail)


def lying_avif(frame: int, said: int, mode: str = "L", **options: object) -> bytes:
    """A flat AVIF with a frame of `frame` x `frame`, whose boxes speak of `said` x `said`."""
    data = encode(Image.new(mode, (frame, frame)), "AVIF", speed=10, quality=1, **options)
    for unit in (1, 1 << 16):  # of an image and of a track
        data = data.replace(
            struct.pack(">II", frame * unit, frame * unit), struct.pack(">II", said * unit, said * unit)
        )
    return data


def _avif_of_samples(number: int) -> bytes:
    """A film whose tables say that it has so many frames, of a byte each."""
    frames = [Image.fromarray(np.dstack([picture(16, 16), picture(16, 16)[..., 0]])) for _ in range(3)]
    data = bytearray(encode(frames[0], "AVIF", save_all=True, append_images=frames[1:]))
    for kind, place, numbers in ((b"stsz", 8, (1, number)), (b"stsc", 16, (number,)), (b"stts", 12, (number,))):
        for match in re.finditer(kind, bytes(data)):
            struct.pack_into(f">{len(numbers)}I", data, match.start() + place, *numbers)
    return bytes(data) + struct.pack(">I4s", 8 + number, b"free") + bytes(number)


def _avif_with_exif(content: bytes) -> bytes:
    # Pillow's own writer would choke on it.
    innocent = exif((270, 7, 4, 0))[6:].ljust(len(content), b"\xa5")
    return encode(Image.fromarray(picture(16, 16)), "AVIF", exif=innocent).replace(innocent, content)


_APP = b"\xff\xfe\0\2"
_DIRECTORY = 5000  # tags of a directory that fits into one segment of a JPEG
_MANY_TAGS = exif(*overlapping_tags(_DIRECTORY, 65_000), size=65_400)

_MAKERS: dict[str, Callable[[], bytes]] = {
    "jpeg of 2000 progressive scans": lambda: _scan_bomb(0xC2, 2000, b"\0"),
    "jpeg of 2000 arithmetic scans": lambda: _scan_bomb(0xCA, 2000, b"\0"),
    "jpeg of 2000 sequential scans": lambda: scans(0xC0, 3, 4000, [(0, 63, 0, 0, bytes(20))] * 2000),
    "jpeg of as many progressive scans as are read": lambda: _scan_bomb(0xC2, 59, b"\0"),
    "jpeg of as many colour scans as are read": lambda: scans(0xC2, 3, _SIDE, [(0, 0, 0, 0, b"\0")] * 20, 3),
    "jpeg of scans behind the only one": lambda: scans(0xC0, 3, 4000, [(0, 63, 0, 0, b"\0")] * 100_000, 3),
    "jpeg of empty comments": lambda: in_jpeg(_APP * (MANY // 4)),
    "jpeg of stray bytes": lambda: in_jpeg(bytes(MANY)),
    "jpeg of fill bytes": lambda: in_jpeg(b"\xff" * MANY),
    "jpeg of quantization tables": lambda: in_jpeg(*[segment(0xDB, (b"\0" + b"\1" * 64) * 1000)] * 450),
    "jpeg of huffman tables": lambda: in_jpeg(*[segment(0xC4, b"\0\1" + bytes(16)) * (MANY // 22)]),
    "jpeg of exif segments": lambda: in_jpeg(segment(0xE1, b"Exif\0\0" + bytes(300)) * (MANY // 310)),
    "jpeg of large exif segments": lambda: in_jpeg(segment(0xE1, b"Exif\0\0" + bytes(65_000)) * 450),
    "jpeg of photoshop blocks": lambda: in_jpeg(
        segment(0xED, b"Photoshop 3.0\0" + (b"8BIM\4\4\0\0" + bytes(4)) * 5400) * 450
    ),
    "jpeg of exif tags that overlap": lambda: in_jpeg(segment(0xE1, _MANY_TAGS)),
    "jpeg of exif tags in many segments": lambda: in_jpeg(
        segment(0xE1, exif(*overlapping_tags(_DIRECTORY, 30_000), size=65_400)),
    ),
    "jpeg of picture index tags that overlap": lambda: in_jpeg(segment(0xE2, b"MPF\0" + _MANY_TAGS[6:])),
    "jpeg of an exif directory that holds itself": lambda: in_jpeg(
        segment(0xE1, exif((34665, 4, 1, 8), (34853, 4, 1, 8), (40965, 4, 1, 8)))
    ),
    "jpeg of a huge exif count": lambda: in_jpeg(segment(0xE1, exif((274, 3, 2**32 - 1, 8), (282, 5, 2**31, 8)))),
    "jpeg of a huge restart interval": lambda: in_jpeg(segment(0xDD, b"\xff\xff")),
    "jpeg of one restart a block": lambda: _jpeg_flat(_SIDE, restart_marker_blocks=1, quality=1),
    "jpeg cut short": _cut_jpeg,
    "jpeg cut short, progressive": lambda: _cut_jpeg(progressive=True),
    "jpeg without loss": lambda: scans(0xC3, 1, _SIDE, [(1, 0, 0, 0, b"\0")]),
    "jpeg without loss, colour": lambda: scans(0xC3, 3, _SIDE, [(1, 0, 0, 0, b"\0")], 3),
    "jpeg of nothing, progressive": lambda: scans(0xC2, 3, _SIDE, [(0, 0, 0, 0, b"\0")]),
    "png of one compressed text": lambda: _png_bomb(b"zTXt", b"a\0\0", 10**8, 1),
    "png of compressed texts": lambda: _png_bomb(b"zTXt", b"a\0\0", 10**6, 25_000),
    "png of compressed international texts": lambda: _png_bomb(b"iTXt", b"a\0\1\0\0\0", 10**6, 25_000),
    "png of compressed profiles": lambda: _png_bomb(b"iCCP", b"a\0\0", 10**6, 25_000),
    "png of damaged compressed xmp": lambda: in_png(
        png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(10**6), 9)[:-1] + b"\0") * 25_000
    ),
    "png of empty chunks": lambda: in_png(png_chunk(b"abCD", b"") * (MANY // 12)),
    "png of empty chunks behind its pixels": lambda: behind_png(png_chunk(b"abCD", b"") * (MANY // 12)),
    "png of empty pixel chunks": lambda: in_png(png_chunk(b"IDAT", b"") * (MANY // 12)),
    "png of small texts": lambda: in_png(png_chunk(b"tEXt", b"a\0b") * (MANY // 15)),
    "png of palettes": lambda: in_png(png_chunk(b"PLTE", b"abc") * (MANY // 15)),
    "png of exif signatures": lambda: in_png(png_chunk(b"eXIf", b"Exif\0\0" * (MANY // 6))),
    "png of exif tags that overlap": lambda: in_png(png_chunk(b"eXIf", _MANY_TAGS)),
    "png of huge exif tags that overlap": lambda: in_png(
        png_chunk(b"eXIf", exif(*overlapping_tags(1000, 10**6), size=2 * 10**6))
    ),
    "png of exif tags by the million": lambda: in_png(png_chunk(b"eXIf", _bigtiff_of_tags(1_490_000))),
    "png of raw exif": lambda: in_png(
        png_chunk(b"tEXt", b"Raw profile type exif\0\n\n\n" + b"457869660000" * (MANY // 12))
    ),
    "png of far more pixels than announced": lambda: _png_of(10, 10, zlib.compress(bytes(10**8), 9)),
    "png of hardly any content": lambda: _png_of(_SIDE, _SIDE, zlib.compress(bytes(100))),
    "png of hardly any content, interlaced": lambda: _png_of(_SIDE, _SIDE, zlib.compress(bytes(100)), True),
    "png of one column": lambda: _png_of(1, 49_000_000, zlib.compress(bytes(98_000_000), 1)),
    "png of one column, interlaced": lambda: _png_of(1, 49_000_000, zlib.compress(bytes(98_000_000), 1), True),
    "png of one row": lambda: _png_of(49_000_000, 1, zlib.compress(bytes(49_000_001), 1)),
    "png of frames": lambda: _apng(200_000),
    "gif of comment blocks": lambda: _gif(b"!\xfe" + (b"\xff" + bytes(255)) * (MANY // 256) + b"\0"),
    "gif of comments": lambda: _gif(b"!\xfe\1a\0" * (MANY // 5)),
    "gif of extensions": lambda: _gif(b"!\xf9\0" * (MANY // 3)),
    "gif of extension blocks": lambda: _gif(b"!\xff" + b"\1a" * (MANY // 2) + b"\0"),
    "gif of stray bytes": lambda: _gif(b"a" * MANY),
    "gif of frames": lambda: _gif(b"", times=500_000),
    "gif of a screen larger than its frame": lambda: _gif(b"", (_SIDE, _SIDE)),
    "gif of a frame larger than its screen": lambda: _gif(b"", (4, 4), (_SIDE, _SIDE)),
    "gif of a frame far larger than its screen": lambda: _gif(b"", (4, 4), (65_000, 65_000)),
    "bmp of single runs": lambda: bmp_of_run_lengths(4000, 3750, b"\1\5" * (2**20 - 1000)),
    "bmp of half runs": lambda: bmp_of_run_lengths(7000, 7000, b"\xff\x12" * 200_000, 2),
    "bmp of empty runs": lambda: bmp_of_run_lengths(100, 100, b"\0\2\0\0" * (MANY // 4)),
    "bmp of a skip over many rows": lambda: bmp_of_run_lengths(49_000_000, 1, b"\0\2\0\xff"),
    "bmp of long skips": lambda: bmp_of_run_lengths(_SIDE, _SIDE, b"\0\2\0\xff" * 100),
    "bmp of a row's end": lambda: bmp_of_run_lengths(49_000_000, 1, b"\1\5\0\0"),
    "bmp of negative sides": lambda: bmp_of_run_lengths(-_SIDE, -_SIDE, b"", 0),
    "bmp of a huge header": lambda: b"BM" + bytes(8) + b"\x36\0\0\0" + struct.pack("<I", 2**31) + bytes(1000),
    "webp of a huge profile": lambda: extended(0x20, chunk(b"ICCP", bytes(MANY)), _webp_pixels()),
    "webp of huge exif": lambda: extended(8, _webp_pixels(), chunk(b"EXIF", b"Exif\0\0" * (MANY // 6))),
    "webp of exif tags that overlap": lambda: extended(
        8, _webp_pixels(), chunk(b"EXIF", exif(*overlapping_tags(1000, 10**6), size=2 * 10**6))
    ),
    "webp of exif tags by the million": lambda: extended(
        8, _webp_pixels(), chunk(b"EXIF", _bigtiff_of_tags(1_490_000))
    ),
    "webp of huge xmp": lambda: extended(4, _webp_pixels(), chunk(b"XMP ", b"tiff:Orientation=" * (MANY // 17))),
    "webp of chunks": lambda: extended(0, chunk(b"abcd", b"") * (MANY // 8), _webp_pixels()),
    "webp of frames": lambda: _animated_webp(400_000),
    "webp of small code tables": lambda: _webp_of_groups(65_536, ZERO),
    "webp of large code tables": lambda: _webp_of_groups(65_536, BYTES),
    "webp of large code tables, as many as are read": lambda: _webp_of_groups(MAX_GROUPS, BYTES),
    "webp of code tables that no pixel has": lambda: riff(vp8l(4, 4, stream([65_535], BYTES))),
    "webp of code tables for its alpha": lambda: extended(
        0x10, chunk(b"ALPH", b"\1" + packed(stream([65_535, *[0] * 15], BYTES))), _webp_pixels()
    ),
    "webp of blocks": lambda: riff(
        vp8l(_SIDE, _SIDE, "1" + "00" + "000" + "0" + BYTES + ZERO * 4 + "0" * (8 * (_SIDE // 4) ** 2))
    ),
    "tiff of a directory that follows itself": _tiff_loop,
    "tiff of tags that overlap": lambda: _pixel_tiff(*overlapping_tags(1000, 10**6), tail=bytes(2 * 10**6)),
    "tiff of compressed tags that overlap": lambda: _pixel_tiff(
        *overlapping_tags(1000, 10**6), tail=bytes(2 * 10**6), compression=8
    ),
    "tiff of tags": lambda: _pixel_tiff(*[(tag, 4, 1, 0) for tag in range(300, 65_000) if tag != 322]),
    "tiff of as many tags as are read": lambda: tiff_of_tags(4096),
    "bigtiff of tags": lambda: _bigtiff_of_tags(1_500_000),
    "tiff of repeated tags": lambda: _pixel_tiff(*[(60_000, 7, 10**6, 8)] * 60_000, tail=bytes(10**6)),
    "tiff of huge counts": lambda: _pixel_tiff((273, 4, 2**32 - 1, 8), (279, 4, 2**32 - 1, 8), tail=bytes(1000)),
    "tiff of strips": lambda: tiff_of_strips(3_000_000),
    "tiff of as many strips as are read": lambda: tiff_of_strips(65_536),
    "tiff of as many rows as are read": lambda: tiff_of_strips(65_535, width=700, height=65_535),
    "tiff of strips that share their bytes": lambda: _tiff_of_shared_strips(65_535),
    "tiff of two readings": lambda: _tiff_of_two_readings(),
    "tiff of strips in bytes": lambda: tiff_of_strips(14_000_000, kind=1),
    "tiff of compressed strips": lambda: tiff_of_strips(3_000_000, 8),
    "tiff of bits a sample": lambda: _pixel_tiff((258, 3, 14_000_000, 8), tail=bytes(MANY)),
    "tiff of resolutions": lambda: _pixel_tiff((282, 5, MANY // 8, 8), tail=bytes(MANY)),
    "tiff of colours": lambda: _pixel_tiff((262, 4, 1, 3), (320, 3, MANY // 2, 8), tail=bytes(MANY)),
    "tiff of overlapping exif tags": lambda: _tiff_subdirectory(34665, overlapping_tags(1000, 10**6), bytes(2 * 10**6)),
    "tiff of exif numbers": lambda: _tiff_subdirectory(34665, [(40_000, 5, MANY // 8, 8)], bytes(MANY)),
    "tiff of progressive scans": lambda: _tiff_compressed_jpeg(2000),
    "tiff of as many progressive scans as are read": lambda: _tiff_compressed_jpeg(MAX_SCANS - 1),
    "tiff of arithmetic scans": lambda: _tiff_compressed_jpeg(MAX_SCANS - 1, marker=0xCA),
    "tiff of one row, and many scans of many": lambda: _tiff_compressed_jpeg(98, 1),
    "tiff without loss": lambda: _tiff_of_jpeg(_SIDE, _SIDE, scans(0xC3, 1, _SIDE, [(1, 0, 0, 0, b"\0")])),
    "tiff of tiles far larger than the image": lambda: tiff_of_tiles(_MAX_SIDE, 1, 752, _MAX_SIDE // 16 * 16),
    "tiff of tiles far larger than the turned image": lambda: tiff_of_tiles(_MAX_SIDE, 1, 16, _MAX_SIDE // 16 * 16, 6),
    "tiff of a large tile and a small one": lambda: _pixel_tiff(
        (322, 3, 1, 20_000), (322, 4, 1, 16), (323, 3, 1, 20_000), (323, 4, 1, 16), *_IN_HEADER, compression=8
    ),
    "tiff of a large tile that Pillow does not see": lambda: _pixel_tiff(
        (322, 17, 1, 158), (323, 17, 1, 158), *_IN_HEADER, tail=struct.pack("<q", 20_000), compression=8
    ),
    "tiff of resolutions and other fractions": lambda: tiff_of_numbers(5, 190_000, 282, 283, 296, 530, 700),
    "tiff of as many fractions as are read": lambda: tiff_of_numbers(5, 9_990, 282, 283, 296, 530, 33_922),
    "tiff of signed bytes": lambda: tiff_of_numbers(6, MANY, 700),
    "tiff of pages": lambda: _tiff_pages(100_000),
    "avif of exif signatures": lambda: _avif_with_exif(b"Exif\0\0" * (MANY // 6)),
    "avif of a frame far larger than it says": lambda: lying_avif(7100, 64),
    "avif of a film's tables": lambda: _avif_of_samples(2_500_000),
    "avif of a small frame": lambda: lying_avif(64, 7000),
    "avif of exif tags that overlap": lambda: _avif_with_exif(exif(*overlapping_tags(1000, 10**6), size=2 * 10**6)[6:]),
}  # fmt: skip

NAMES = tuple(_MAKERS)


def hostile(name: str) -> bytes:
    """The hostile image of that name, one of `NAMES`."""
    return _MAKERS[name]()
