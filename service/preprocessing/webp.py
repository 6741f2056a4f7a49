"""How large a WebP is, and whether its decoder takes memory for more code tables than any encoder writes.

Comes in: the bytes of a WebP, hostile ones included. Goes out: the size of its canvas, or a typed fault. Of its pixels
it reads those few alone that say which code table is for which block. It must not know what is too large.

Source: RFC 9649.
"""

from collections.abc import Iterator, Sequence

from service.errors import CorruptImage, UnsupportedFormat

MAX_CHUNKS = 1 << 16
# libwebp's encoder writes at most 2600. Each takes up to 20 KB; 65,536, which one pixel can announce, take seconds.
MAX_GROUPS = 4096
MAX_BLOCKS = 400_000  # at 50 megapixels libwebp's encoder writes two times 196,416 at most

_LITERALS, _WITH_LENGTHS = 256, 280  # symbols that stand for a colour, and these with those for a copy
_ORDER = (17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
_REPEATS = {16: (2, 3), 17: (3, 3), 18: (7, 11)}  # bits of the number, and what it counts from
_LONGEST_CODE = 15
_PREDICTOR, _CROSS_COLOUR, _PALETTE = 0, 1, 3  # the transforms that have data

_Table = Sequence[int]  # a symbol and the bits of its code, by the bits that follow: symbol << 4 | bits


class _Bits:
    """Reads bits, the lowest of each byte first; behind the end they are zeros."""

    def __init__(self, data: bytes, start: int) -> None:
        self._data, self._place = data, 8 * start
        self.blocks_left = MAX_BLOCKS

    def ahead(self) -> int:
        """At least 65 bits."""
        start = self._place >> 3
        if start > len(self._data):
            raise _corrupt()
        return int.from_bytes(self._data[start : start + 9], "little") >> (self._place & 7)

    def skip(self, count: int) -> None:
        self._place += count

    def number(self, count: int) -> int:
        value = self.ahead() & (1 << count) - 1
        self._place += count
        return value

    def symbol(self, table: _Table) -> int:
        entry = table[self.ahead() & len(table) - 1]
        self._place += entry & 15
        return entry >> 4

    def length_or_distance(self, symbol: int) -> int:
        bits = max(symbol - 2 >> 1, 0)
        return (symbol if symbol < 4 else (2 + (symbol & 1) << bits) + self.number(bits)) + 1


def canvas(data: bytes) -> tuple[int, int]:
    """Width and height, as its first chunk announces them; zeros where that is of no known kind."""
    if data[12:16] == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if data[12:16] == b"VP8L":
        return _lossless_size(data, 20)
    return _lossy_size(data, 20) if data[12:16] == b"VP8 " else (0, 0)


def check_tables(data: bytes) -> None:
    """Look at the first picture, and at its alpha.

    Raises:
        UnsupportedFormat: it has more code tables, blocks or chunks than any encoder writes.
        CorruptImage: it ends, or makes no sense, before its pixels begin.
    """
    alpha = 0
    for kind, start in _chunks(data):
        if kind == b"ALPH":
            alpha = alpha or start
        elif kind == b"VP8L":
            return _check_stream(_Bits(data, start + 5), *_lossless_size(data, start))
        elif kind == b"VP8 ":
            if alpha and data[alpha] & 3 == 1:
                _check_stream(_Bits(data, alpha + 1), *_lossy_size(data, start))
            return None


def _chunks(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Kind and beginning of the content of each chunk, also of those within a frame."""
    start = 12
    for _ in range(MAX_CHUNKS):
        kind, size = data[start : start + 4], int.from_bytes(data[start + 4 : start + 8], "little")
        if start + 8 >= len(data):
            return
        yield kind, start + 8
        start += 8 + (16 if kind == b"ANMF" else size + size % 2)
    raise UnsupportedFormat(f"a WebP with {MAX_CHUNKS} chunks before its picture is not read; save it anew")


def _lossless_size(data: bytes, start: int) -> tuple[int, int]:
    packed = int.from_bytes(data[start + 1 : start + 5], "little")
    return 1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF)


def _lossy_size(data: bytes, start: int) -> tuple[int, int]:
    packed = int.from_bytes(data[start + 6 : start + 10], "little")
    return packed & 0x3FFF, packed >> 16 & 0x3FFF


def _check_stream(bits: _Bits, width: int, height: int) -> None:
    transforms: set[int] = set()
    while bits.number(1):
        transform = bits.number(2)
        if transform in transforms:
            raise _corrupt()
        transforms.add(transform)
        if transform == _PALETTE:
            colours = bits.number(8) + 1
            _greatest_pixel(bits, colours, 1)
            width = _blocks(width, next(log for log, most in ((3, 2), (2, 4), (1, 16), (0, 256)) if colours <= most))
        elif transform in (_PREDICTOR, _CROSS_COLOUR):
            side = bits.number(3) + 2
            _greatest_pixel(bits, _blocks(width, side), _blocks(height, side))
    _cache_size(bits)
    if bits.number(1):
        side = bits.number(3) + 2
        # Red and green of a pixel together are the number of a group of tables.
        if _greatest_pixel(bits, _blocks(width, side), _blocks(height, side)) >= MAX_GROUPS:
            raise UnsupportedFormat(f"a WebP of more than {MAX_GROUPS} groups of codes is not read; save it anew")


def _blocks(length: int, log_side: int) -> int:
    return length + (1 << log_side) - 1 >> log_side


def _cache_size(bits: _Bits) -> int:
    log_size = bits.number(4) if bits.number(1) else 0
    if log_size > 11:
        raise _corrupt()
    return 1 << log_size if log_size else 0


def _greatest_pixel(bits: _Bits, width: int, height: int) -> int:
    """Read one of the small pictures that precede the large one: its greatest red and green as one number.

    Whatever a copied pixel holds, or one out of the cache, has been in another one before.
    """
    green = _table(bits, _WITH_LENGTHS + _cache_size(bits))
    red, blue, alpha = (_table(bits, _LITERALS) for _ in range(3))
    distance = _table(bits, 40)
    greatest, left = 0, width * height
    while left > 0:
        bits.blocks_left -= 1
        if bits.blocks_left < 0:
            raise UnsupportedFormat(f"a WebP of more than {MAX_BLOCKS} blocks is not read; save it with less effort")
        ahead = bits.ahead()
        entry = green[ahead & len(green) - 1]
        used, symbol = entry & 15, entry >> 4
        if symbol < _LITERALS:
            entry = red[ahead >> used & len(red) - 1]
            used += entry & 15
            if (pixel := entry >> 4 << 8 | symbol) > greatest:  # max() takes a tenth of all the time
                greatest = pixel
            used += blue[ahead >> used & len(blue) - 1] & 15
            used += alpha[ahead >> used & len(alpha) - 1] & 15
            left -= 1 if used else left  # all are alike
        bits.skip(used)
        if _LITERALS <= symbol < _WITH_LENGTHS:
            left -= bits.length_or_distance(symbol - _LITERALS)
            bits.length_or_distance(bits.symbol(distance))
        elif symbol >= _WITH_LENGTHS:
            left -= 1
    return greatest


def _table(bits: _Bits, symbols: int) -> _Table:
    """Read a prefix code for so many symbols."""
    if not bits.number(1):
        return _table_of(_code_lengths(bits, symbols))
    has_two = bits.number(1)
    used = [bits.number(8 if bits.number(1) else 1), *([bits.number(8)] if has_two else [])]
    return _table_of([int(symbol in used) for symbol in range(symbols)])


def _code_lengths(bits: _Bits, symbols: int) -> list[int]:
    """Read the bits of each symbol's code, which are themselves written in a code."""
    own = [0] * len(_ORDER)
    for symbol in _ORDER[: bits.number(4) + 4]:
        own[symbol] = bits.number(3)
    table = _table_of(own)
    left = 2 + bits.number(2 + 2 * bits.number(3)) if bits.number(1) else symbols
    lengths: list[int] = []
    last = 8
    if left > symbols:
        raise _corrupt()
    while len(lengths) < symbols and left:
        left -= 1
        symbol = bits.symbol(table)
        if symbol <= _LONGEST_CODE:
            lengths.append(symbol)
            last = symbol or last
        else:
            more, least = _REPEATS[symbol]
            lengths += [last if symbol == 16 else 0] * (bits.number(more) + least)
    if len(lengths) > symbols:
        raise _corrupt()
    return lengths


def _table_of(lengths: Sequence[int]) -> _Table:
    codes = sorted((length, symbol) for symbol, length in enumerate(lengths) if length)
    if len(codes) == 1:
        return [codes[0][1] << 4]
    if sum(1 << _LONGEST_CODE - length for length, _ in codes) != 1 << _LONGEST_CODE:
        raise _corrupt()
    size = 1 << codes[-1][0]
    table = [0] * size
    code = 0
    for length, symbol in codes:
        first = int(f"{code:0{_LONGEST_CODE}b}"[::-1], 2)
        table[first :: 1 << length] = [symbol << 4 | length] * (size >> length)
        code += 1 << _LONGEST_CODE - length
    return table


def _corrupt() -> CorruptImage:
    return CorruptImage("the WebP is truncated or corrupt in its header")
