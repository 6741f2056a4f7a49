"""What the AV1 of an image says of its frames, before any of them is decoded.

Comes in: a stream of AV1, a hostile one included. Goes out: how large its frames are. It reads no pixels and must not
know what is too large, nor where the stream comes from.

Source: sections 5.3 to 5.9 of the AV1 bitstream specification.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from service.errors import UnsupportedFormat

_SEQUENCE_HEADER = 1
# A redundant header counts, too: decoders take it for the frame's where they have seen none.
_FRAMES = (3, 6, 7)
_LONGEST_HEADER = 512  # bytes, more than all fields that are read here can take
_KEY_FRAME, _SWITCH_FRAME = 0, 3
_FRAME_DECIDES = 2

_Bits = Callable[[int], int]  # the next so many bits of a header as a number


class Frames(NamedTuple):
    """Width and height of the largest frame that is announced, and the pixels of all that there are."""

    largest: tuple[int, int]
    pixels: int


class _Sequence(NamedTuple):
    """The size of the largest frame, and what one must know to read the frames' headers.

    Attributes:
        is_reduced: these are short, and no frame has a size of its own.
        time_bits: of the time at which a frame is shown.
        screen_tools: whether a frame may use them, 0 or 1, or `_FRAME_DECIDES`.
        whole_vectors: likewise, whether it moves by whole pixels.
        id_bits: of a frame's number.
    """

    width: int
    height: int
    is_reduced: bool
    time_bits: int = 0
    screen_tools: int = _FRAME_DECIDES
    whole_vectors: int = _FRAME_DECIDES
    id_bits: int = 0


def frames_of(stream: bytes, count: Callable[[], None]) -> Frames:
    """The frames of a stream; `count` is called for each of its units.

    Raises:
        UnsupportedFormat: a frame has a size of its own, which may be any.
    """
    sequence, largest, pixels = None, (0, 0), 0
    for kind, header in _units(stream, count):
        if kind == _SEQUENCE_HEADER:
            sequence = _sequence(_bits_of(header))
            largest = max(largest, (sequence.width, sequence.height), key=lambda size: size[0] * size[1])
        elif kind in _FRAMES and sequence is not None:
            if _has_own_size(_bits_of(header), sequence):
                raise UnsupportedFormat("an AVIF with frames of several sizes is not read; save it anew")
            pixels += sequence.width * sequence.height
    return Frames(largest, pixels)


def _units(stream: bytes, count: Callable[[], None]) -> Iterator[tuple[int, bytes]]:
    """Kind and beginning of each unit (OBU)."""
    place = 0
    while place < len(stream):
        count()
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


def _bits_of(header: bytes) -> _Bits:
    """A reader of its bits; what is cut off it counts as zeros."""
    value, left = int.from_bytes(header.ljust(_LONGEST_HEADER, b"\0"), "big"), 8 * _LONGEST_HEADER

    def bits(number: int) -> int:
        nonlocal left
        left -= number
        return value >> left & (1 << number) - 1

    return bits


def _sequence(bits: _Bits) -> _Sequence:
    bits(4)  # profile, still picture
    if bits(1):
        bits(5)
        return _Sequence(*_size(bits), is_reduced=True)
    time_bits = _time_bits_and_operating_points(bits)
    width, height = _size(bits)
    # The lengths of the difference to another frame's number, and of what a number is longer.
    id_bits = bits(4) + 2 + bits(3) + 1 if bits(1) else 0
    bits(7)  # blocks, filters, compound prediction, warping
    has_order = bits(1)
    bits(2 * has_order)
    screen_tools = _FRAME_DECIDES if bits(1) else bits(1)
    whole_vectors = _FRAME_DECIDES if not screen_tools or bits(1) else bits(1)
    return _Sequence(width, height, False, time_bits, screen_tools, whole_vectors, id_bits)


def _size(bits: _Bits) -> tuple[int, int]:
    width_bits, height_bits = bits(4) + 1, bits(4) + 1
    return bits(width_bits) + 1, bits(height_bits) + 1


def _time_bits_and_operating_points(bits: _Bits) -> int:
    """Read what a full sequence header has between its first flags and the size of its frames."""
    delay_bits = time_bits = 0
    if bits(1):  # timing
        bits(64)
        is_equal = bits(1)
        if is_equal:  # an interval, whose length begins with as many zeros as it has bits
            bits(next((zeros for zeros in range(32) if bits(1)), 0))
        if bits(1):  # a model of the decoder
            delay_bits = bits(5) + 1
            bits(37)
            told_bits = bits(5) + 1
            time_bits = 0 if is_equal else told_bits
    display_delays = bits(1)
    for _ in range(bits(5) + 1):
        bits(12)
        if bits(5) > 7:  # levels with tiers
            bits(1)
        if delay_bits and bits(1):
            bits(2 * delay_bits + 1)
        if display_delays and bits(1):
            bits(4)
    return time_bits


def _has_own_size(bits: _Bits, sequence: _Sequence) -> bool:
    """Whether the frame with this header says how large it is."""
    if sequence.is_reduced or bits(1):  # shown again
        return False
    kind, is_shown = bits(2), bits(1)
    # When it is shown, or else whether it can be.
    bits(sequence.time_bits if is_shown else 1)
    if kind != _SWITCH_FRAME and not (kind == _KEY_FRAME and is_shown):
        bits(1)
    bits(1)
    screen_tools = bits(1) if sequence.screen_tools == _FRAME_DECIDES else sequence.screen_tools
    if screen_tools and sequence.whole_vectors == _FRAME_DECIDES:
        bits(1)
    bits(sequence.id_bits)
    return kind == _SWITCH_FRAME or bool(bits(1))
