"""Run lengths of a BMP -> the palette's indices that they stand for.

Pillow's own reader loses the last pixel of an odd run of four bits, does not end a literal run at its row's end, and
refuses rows that are left out; each moves all that follows, or loses the picture.

Source: the format's description by Microsoft ("Bitmap Compression").
"""

from service.errors import CorruptImage

_SINGLES = [bytes((value,)) for value in range(256)]
_PAIRS = [bytes((value >> 4, value & 15)) for value in range(256)]
_END_OF_ROW, _END_OF_PICTURE, _SKIP = 0, 1, 2


def indices(runs: bytes, width: int, height: int, four_bits: bool) -> bytearray:
    """uint8 `[height * width]`, rows in the order of the file, 0 where no run tells.

    `runs` are pairs of bytes: a run of one value (with `four_bits` of two that alternate), a number of literal values
    that follow, or a move. Raises CorruptImage where they end before the picture.
    """
    rows = bytearray(width * height)
    units = _PAIRS if four_bits else _SINGLES
    x = y = at = 0
    try:
        while y < height:
            count, value = runs[at], runs[at + 1]
            at += 2
            if count:
                run = units[value] * count
            elif value == _END_OF_ROW:
                x, y = 0, y + 1
                continue
            elif value == _END_OF_PICTURE:
                break
            elif value == _SKIP:
                x, y, at = x + runs[at], y + runs[at + 1], at + 2
                continue
            else:
                count, size = value, -(-value // len(units[0]))
                run = b"".join(map(units.__getitem__, runs[at : at + size]))
                if len(run) < count:
                    raise IndexError
                at += size + size % 2  # they fill up to two bytes
            end = min(x + count, width)
            if x < end:
                rows[y * width + x : y * width + end] = run[: end - x]
            x = end
    except IndexError:
        if x < width or y < height - 1:
            raise CorruptImage("the BMP is truncated: its run lengths end before the picture") from None
    return rows
