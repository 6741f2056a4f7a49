"""WebPs chunk by chunk, and lossless ones that no encoder writes: black pixels, and any number of code tables for them.

The streams are texts of zeros and ones, in the order in which they are read. Source: RFC 9649.
"""

import struct
from collections.abc import Sequence


def number(value: int, bits: int) -> str:
    """Its lowest bit first."""
    return f"{value:0{bits}b}"[::-1]


ZERO = "1000"  # a code of one symbol, which takes no bits
ONE = "1001"
# A code of 8 bits a symbol for the first 256 of an alphabet, whose own code knows the lengths 0 and 8.
BYTES = "0" + number(8, 4) + "".join(number(int(place in (2, 11)), 3) for place in range(12))
BYTES += "1" + number(3, 3) + number(254, 8) + "1" * 256
# A code of two bits a symbol for a pixel of green 0, one of green 1, a copy of 4 pixels, and one of a cache of two;
# its own code knows the length 2 and runs of zeros.
_MIXED = "0" + number(1, 4) + "".join(number(length, 3) for length in (0, 1, 0, 0, 1)) + "1" + number(1, 3)
_MIXED += number(5, 4) + "00" + "1" + number(127, 7) + "1" + number(108, 7) + "0" + "1" + number(9, 7) + "0"
_BLACK, _COPY, _CACHED = "00", "10", "11"
# 4 x 4 pixels: one, and what comes of it; copies are of the pixel before them.
SMALL = "1" + number(1, 4) + _MIXED + ZERO * 3 + ONE + _BLACK + (_COPY + _CACHED) * 3
# Transforms of a picture of 16 x 16 pixels in blocks of 4 x 4, and one for 16 colours that halves its width.
TRANSFORMS = "1" + number(0, 2) + number(0, 3) + SMALL + "1" + number(2, 2) + "1" + number(1, 2) + number(0, 3) + SMALL
PALETTE = "1" + number(3, 2) + number(15, 8) + SMALL


def stream(groups: Sequence[int], code: str = ZERO, transforms: str = "") -> str:
    """What follows the size: `groups` has the number of the group of each block of 4 x 4 pixels.

    All groups up to the greatest number have the same code, in which black takes no bits where there are few enough.
    """
    blocks = "0" + BYTES * 2 + ZERO * 3 + "".join(f"{group & 255:08b}{group >> 8:08b}" for group in groups)
    return f"{transforms}001000{blocks}" + (code * 4 + ZERO) * (max(groups) + 1)


def packed(bits: str) -> bytes:
    """A stream's bytes."""
    return int(bits[::-1], 2).to_bytes(-(-len(bits) // 8), "little")


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a WebP."""
    return kind + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def riff(*chunks: bytes) -> bytes:
    """A WebP of these chunks."""
    content = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(content)) + content


def extended(flags: int, *chunks: bytes) -> bytes:
    """A WebP of 16 x 16 pixels whose first chunk says what comes."""
    return riff(chunk(b"VP8X", struct.pack("<I", flags) + b"\x0f\0\0\x0f\0\0"), *chunks)


def frame(*chunks: bytes) -> bytes:
    """The chunk of an animation's frame of 16 x 16 pixels."""
    return chunk(b"ANMF", bytes(6) + b"\x0f\0\0\x0f\0\0" + b"\1\0\0\0" + b"".join(chunks))


def vp8l(width: int, height: int, bits: str) -> bytes:
    """The chunk of a lossless picture of that stream."""
    return chunk(b"VP8L", packed(number(0x2F, 8) + number(width - 1, 14) + number(height - 1, 14) + "0000" + bits))
