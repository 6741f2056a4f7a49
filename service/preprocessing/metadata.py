"""An encoded image -> the same without what no pixel needs, and its orientation.

Comes in: encoded bytes of any kind. Goes out: bytes of which a decoder reads little but pixels, or a typed fault. It
looks at the structure of files alone; it must not know of pixels, limits of the service or Pillow.
"""

import itertools
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from service.errors import CorruptImage, UnsupportedFormat
from service.preprocessing import tiff, webp
from service.preprocessing.avif import announced_frames

# Far above what cameras and encoders write. A JPEG passes 14 times over a component (with CMYK 24 times), has tables of
# 4 KiB, and a segment for each 64 KiB of metadata; a PNG has a chunk for each 8 KiB or more. At 50 megapixels a pass
# takes up to 60 ms.
MAX_SEGMENTS = 4096
MAX_PASSES = 60
MAX_TABLE_BYTES = 1 << 16
MAX_CHUNKS = 1 << 16
MAX_GIF_BLOCKS = 1 << 16
_MAX_TEXT = 1 << 20

# A marker that a length follows (and EOI); no stuffed byte (FF00), no fill byte (FFFF).
_JPEG_MARKER = re.compile(rb"\xff([\xc0-\xcf\xd9-\xfe])")
_SOS, _EOI, _APP1, _COM = 0xDA, 0xD9, 0xE1, 0xFE
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_UNREAD_FRAMES = (_FRAMES - {0xC0, 0xC1, 0xC2}) | {0xF7}  # the last is JPEG-LS's
_SEQUENTIAL_FRAMES = (0xC0, 0xC1)
_APP = range(0xE0, 0xF0)
_EXIF = b"Exif\0\0"
_JPEG_XMP = b"http://ns.adobe.com/xap/1.0/\0"
# By their markers; they say which colours the samples stand for. Shorter ones libjpeg passes over, and Pillow fails of.
_COLOUR_SEGMENTS = {0xE0: b"JFIF\0", 0xEE: b"Adobe"}
_LEAST_COLOUR_BYTES = 12
_PNG_XMP = b"XML:com.adobe.xmp\0"
_PNG_EXIF_TEXT = b"Raw profile type exif\0"
_GIF_BLOCK = re.compile(rb"[!,;]")
_GIF_TOO_LONG = "a GIF with so much before its first frame is not read; save it without metadata"
_GRAPHIC_CONTROL = b"!\xf9\4"  # of an empty one Pillow takes what follows for its blocks, also a frame
_AVIF_BRANDS = (b"avif", b"avis", b"mif1", b"msf1")  # Pillow's; of a film or a HEIC nothing is to be looked at
# What an item information entry of version 2 or 3 holds before the item's type.
_AVIF_EXIF_ITEM = re.compile(rb"(infe\x02.{7}|infe\x03.{9})Exif", re.DOTALL)
_ORIENTATION = 0x0112
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


class Stripped(NamedTuple):
    """An encoded image, and the metadata that was taken out of it; empty where there was none.

    `frame` is width and height of the largest frame that an AVIF holds, whatever its boxes say of the image, of a GIF's
    first frame and of a WebP's canvas: Pillow has them take memory before it tells how large they are; `frames_pixels`
    is what all frames of the AVIF have; `plain_jpeg` is width and height of a JPEG in gray or three colours of 8 bits,
    of which every decoder finds the same header.
    """

    data: bytes
    exif: bytes = b""
    xmp: bytes = b""
    frame: tuple[int, int] = (0, 0)
    frames_pixels: int = 0
    plain_jpeg: tuple[int, int] | None = None


def strip(data: bytes) -> Stripped:
    """Take the metadata out of a JPEG, PNG, GIF or AVIF, and look whether a TIFF's is within bounds.

    Raises:
        UnsupportedFormat: its structure is over what any real image needs.
        CorruptImage: it ends before its pixels begin.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return _strip_jpeg(data)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _strip_png(data)
    if data.startswith((b"GIF87a", b"GIF89a")):
        return _strip_gif(data)
    if data[4:8] == b"ftyp" and data[8:12] in _AVIF_BRANDS:
        frames = announced_frames(data)
        # An item of no known type is passed over.
        return Stripped(_AVIF_EXIF_ITEM.sub(rb"\1none", data), frame=frames.largest, frames_pixels=frames.pixels)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        webp.check_tables(data)
        return Stripped(data, frame=webp.canvas(data))
    if data.startswith(b"MM\0+"):
        # Pillow and libtiff find different directories in it.
        raise UnsupportedFormat("a big-endian BigTIFF is not read; save it as TIFF")
    if data.startswith((b"II", b"MM")):
        tiff.check(data)
    return Stripped(data)


def orientation(exif: bytes, xmp: bytes) -> int | None:
    """What the EXIF block, or without an entry there the XMP packet, says of the image's orientation."""
    found, value = _exif_orientation(exif)
    if found:
        return value
    match = _XMP_ORIENTATION.search(xmp)
    return int(match[1]) if match else None


def _strip_jpeg(data: bytes) -> Stripped:
    exif = xmp = b""
    kept = [b"\xff\xd8"]
    pixels = passes = 0
    components = b""
    for marker, start, end in _jpeg_segments(data):
        if marker == _SOS:
            pixels = pixels or start
            shown = data[start + 4 : start + 5]
            passes += int.from_bytes(shown, "big")
            # libjpeg reads no other scan then: most JPEGs need no look at their pixels.
            if shown == components:
                break
        elif not pixels and marker in _UNREAD_FRAMES:
            # libjpeg-turbo decodes a lossless one at its full size, also into memory for a reduced one; arithmetic
            # coding takes 11 s at 50 megapixels, and Pillow does not read it beyond 64 KiB.
            raise UnsupportedFormat(
                "a lossless, hierarchical or arithmetic-coded JPEG is not read; save it as a baseline JPEG"
            )
        elif not pixels and _is_for_pixels(marker, data[start + 4 : min(end, start + 4 + _LEAST_COLOUR_BYTES)]):
            kept.append(data[start:end])
            components = data[start + 9 : start + 10] if marker in _SEQUENTIAL_FRAMES else components
        elif marker == _APP1 and not exif and data.startswith(_EXIF, start + 4):
            exif = data[start + 4 : end]
        elif marker == _APP1 and not xmp and data.startswith(_JPEG_XMP, start + 4):
            xmp = data[start + 4 : end]
    if not pixels:
        raise CorruptImage("the JPEG is truncated or corrupt in its header")
    if passes > MAX_PASSES:
        raise UnsupportedFormat("a JPEG of so many scans is not read; save it as a baseline JPEG")
    header = sum(map(len, kept))
    if header > MAX_TABLE_BYTES:
        raise UnsupportedFormat(f"a JPEG with tables of more than {MAX_TABLE_BYTES} bytes is not read; save it anew")
    # Where nothing is taken out, nothing is copied: that holds the GIL, for which other threads wait.
    stripped = data if header == pixels else b"".join([*kept, memoryview(data)[pixels:]])
    return Stripped(stripped, exif, xmp, plain_jpeg=_plain_size(kept[1:]))


def _is_for_pixels(marker: int, content: bytes) -> bool:
    """Whether a segment is anything but metadata, by its first bytes."""
    is_metadata = marker in _APP or marker == _COM
    is_of_colours = content[:5] == _COLOUR_SEGMENTS.get(marker) and len(content) >= _LEAST_COLOUR_BYTES
    return not is_metadata or is_of_colours


def _plain_size(segments: Sequence[bytes]) -> tuple[int, int] | None:
    """Width and height, where the segments before the pixels are whole and one of them is a plain picture's frame."""
    frames = [segment for segment in segments if segment[1] in _FRAMES]
    if len(frames) != 1 or len(frames[0]) < 10 or any(len(segment) < 4 for segment in segments):
        return None
    bits, height, width, components = struct.unpack_from(">BHHB", frames[0], 4)
    return (width, height) if bits == 8 and components in (1, 3) and width and height else None


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each marker segment, up to the end of the (first) picture."""
    end = 2
    for _ in range(MAX_SEGMENTS):
        match = _JPEG_MARKER.search(data, end)
        if match is None or match[1][0] == _EOI:
            return
        start = match.start()
        end = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
        yield match[1][0], start, end
    raise UnsupportedFormat(f"a JPEG of more than {MAX_SEGMENTS} segments is not read; save it without metadata")


def _strip_png(data: bytes) -> Stripped:
    view = memoryview(data)
    kept = [view[:8]]
    found: dict[bytes, bytes] = {}  # the first of each: their number must not multiply the work
    end = 8
    for kind, start, end in _png_chunks(data):
        if not _is_png_metadata(kind):
            kept.append(view[start:end])
        elif kind == b"eXIf":
            found.setdefault(kind, data[start + 8 : end - 4])
        elif data.startswith(_PNG_XMP, start + 8):
            found.setdefault(_PNG_XMP, data[start + 4 : end - 4])
        elif data.startswith(_PNG_EXIF_TEXT, start + 8):
            found.setdefault(_PNG_EXIF_TEXT, data[start + 4 : end - 4])
    exif = found.get(b"eXIf") or _unhex(_png_text(found.get(_PNG_EXIF_TEXT, b"")))
    return Stripped(b"".join([*kept, view[end:]]), exif, _png_text(found.get(_PNG_XMP, b"")))


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of each whole chunk."""
    end = 8
    for _ in range(MAX_CHUNKS):
        start = end
        kind = data[start + 4 : start + 8]
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        if end > len(data) or len(kind) < 4:
            return
        yield kind, start, end
        if kind == b"IEND":
            return
    raise UnsupportedFormat(f"a PNG of more than {MAX_CHUNKS} chunks is not read; save it anew")


def _is_png_metadata(kind: bytes) -> bool:
    return kind.isalpha() and kind[:1].islower() and kind != b"tRNS"


def _png_text(chunk: bytes) -> bytes:
    """The text of a textual chunk's kind and content, of a long one the first MiB; empty where it is damaged."""
    kind, text = chunk[:4], chunk.partition(b"\0")[2]
    compressed = kind == b"zTXt" or (kind == b"iTXt" and text[:1] == b"\1")
    if kind == b"zTXt":
        text = text[1:]
    elif kind == b"iTXt":
        text = text[2:].split(b"\0", 2)[-1]
    try:
        return zlib.decompressobj().decompress(text, _MAX_TEXT) if compressed else text[:_MAX_TEXT]
    except zlib.error:
        return b""


def _unhex(text: bytes) -> bytes:
    """The EXIF block that older encoders write as text: an empty line, a name, a length, and hexadecimal digits."""
    try:
        return bytes.fromhex(text.split(b"\n", 3)[3].decode("ascii"))
    except (IndexError, ValueError):
        return b""


def _strip_gif(data: bytes) -> Stripped:
    """Without the extensions before the first frame, but for those that say which colour is transparent."""
    kept = [data[: 13 + (3 << (data[10] & 7) + 1 if data[10:11] >= b"\x80" else 0)]]
    position = len(kept[0])
    blocks = itertools.count()
    while match := _GIF_BLOCK.search(data, position):
        if match[0] != b"!":
            stripped = b"".join([*kept, memoryview(data)[match.start() :]])
            x, y, width, height = struct.unpack("<4H", data[match.end() : match.end() + 8].ljust(8, b"\0"))
            return Stripped(stripped, frame=(x + width, y + height) if match[0] == b"," else (0, 0))
        if next(blocks) > MAX_GIF_BLOCKS:
            raise UnsupportedFormat(_GIF_TOO_LONG)
        position = match.start() + 2
        while size := int.from_bytes(data[position : position + 1], "big"):
            position += 1 + size
            if next(blocks) > MAX_GIF_BLOCKS:
                raise UnsupportedFormat(_GIF_TOO_LONG)
        position += 1
        if data.startswith(_GRAPHIC_CONTROL, match.start()):
            kept.append(data[match.start() : position])
    raise CorruptImage("the GIF is truncated or corrupt in its header")


def _exif_orientation(exif: bytes) -> tuple[bool, int | None]:
    """Whether the first directory has an orientation, and its value where it is a number."""
    block = exif.removeprefix(_EXIF).removeprefix(_EXIF)  # some programs put it in front once more
    tags = tiff.tags(block) if block.startswith((b"II", b"MM")) else iter(())
    for tag, kind, count, place in itertools.islice(tags, tiff.MAX_TAGS):
        if tag == _ORIENTATION:
            values = tiff.numbers(block, kind, count, place) if kind in (3, 4, 8) and count == 1 else ()
            return True, values[0] if values else None
    return False, None
