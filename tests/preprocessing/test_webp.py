"""The code tables of a lossless WebP are counted before they take memory, wherever in the file they are."""

import numpy as np
import pytest
from PIL import Image

from service.errors import ClientFault, CorruptImage, UnsupportedFormat
from service.preprocessing import webp
from service.preprocessing.decode import Decoder
from tests.images import encode, picture
from tests.webps import (
    BYTES,
    ONE,
    PALETTE,
    SMALL,
    TRANSFORMS,
    ZERO,
    chunk,
    extended,
    frame,
    number,
    packed,
    riff,
    stream,
    vp8l,
)

DECODER = Decoder(2**25, 50_000_000)
LOSSY = encode(Image.fromarray(picture(16, 16)), "WEBP")[12:]


def _alpha(bits: str) -> bytes:
    return chunk(b"ALPH", b"\1" + packed(bits))


ANIM = chunk(b"ANIM", bytes(6))
WAYS = {
    "alone": lambda bits: riff(vp8l(16, 16, bits)),
    "extended": lambda bits: extended(0, chunk(b"abcd", b"odd"), vp8l(16, 16, bits)),
    "alpha": lambda bits: extended(0x10, _alpha(bits), LOSSY),
    "frame": lambda bits: extended(2, ANIM, frame(vp8l(16, 16, bits)), frame(LOSSY)),
    "frame's alpha": lambda bits: extended(0x12, ANIM, frame(_alpha(bits), LOSSY)),
    "frame behind none": lambda bits: extended(2, ANIM, frame(chunk(b"abcd", b"")), frame(vp8l(16, 16, bits))),
}
BEFORE = {
    "nothing": ("", 16),
    "transforms": (TRANSFORMS, 16),
    "transforms and a palette": (TRANSFORMS + PALETTE, 8),  # of 16 colours, two to a pixel
}


@pytest.mark.parametrize(("transforms", "blocks"), BEFORE.values(), ids=BEFORE)
@pytest.mark.parametrize("way", WAYS)
def test_code_tables_are_counted(way: str, transforms: str, blocks: int) -> None:
    """libwebp reads the sound one to its end: both find the same bits."""
    within, over = (
        WAYS[way](stream([*range(blocks - 1), webp.MAX_GROUPS + more], transforms=transforms)) for more in (-1, 0)
    )
    assert DECODER.decode(within).pixels.shape == (16, 16, 3)
    with pytest.raises(UnsupportedFormat, match="groups of codes"):
        DECODER.decode(over)


@pytest.mark.parametrize("method", range(7))
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_what_an_encoder_writes_is_read(method: int, mode: str) -> None:
    image = Image.fromarray(picture(151, 107)).convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize(image.size))
        assert DECODER.decode(encode(image, "WEBP", method=method)).pixels.size
    data = encode(image, "WEBP", lossless=True, method=method, quality=100, exact=True)
    if mode != "RGBA":
        np.testing.assert_array_equal(DECODER.decode(data).pixels, np.asarray(image.convert("RGB")))
    for end in range(12, 400, 13):
        with pytest.raises(ClientFault):
            DECODER.decode(data[:end])


BEYOND = "1" + number(0, 2) + number(0, 3)
CORRUPT = {
    "a transform twice": BEYOND + SMALL + BEYOND + SMALL,
    "a cache that is too large": "01" + number(12, 4),
    "a code of no symbol": BEYOND + "0" + ZERO * 4 + "10" + "1" + number(99, 8),
    "a code that leaves bits over": BEYOND + "0" + "0" + number(0, 4) + "100" + "000" * 2 + "100" + "0" + "1" * 99,
    "more lengths than symbols": BEYOND + "0" + BYTES.replace(number(254, 8), number(255, 8)) * 2 + "1" * 999,
    "no end": BEYOND + "0" + BYTES + ONE * 4,
}


@pytest.mark.parametrize("bits", CORRUPT.values(), ids=CORRUPT)
def test_what_libwebp_does_not_read_is_corrupt(bits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = riff(vp8l(999, 999, bits))
    with pytest.raises(CorruptImage, match="in its header"):
        DECODER.decode(data)
    monkeypatch.setattr(webp, "check_tables", lambda _: None)
    with pytest.raises(CorruptImage):
        DECODER.decode(data)


def test_blocks_and_chunks_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    data = riff(vp8l(16, 16, stream([0] * 16, transforms=TRANSFORMS)))
    for blocks, chunks in ((30, 1), (29, 1), (30, 0)):
        monkeypatch.setattr(webp, "MAX_BLOCKS", blocks)
        monkeypatch.setattr(webp, "MAX_CHUNKS", chunks)
        if (blocks, chunks) == (30, 1):
            assert DECODER.decode(data).pixels.size
        else:
            with pytest.raises(UnsupportedFormat, match=f"more than {blocks} blocks" if chunks else "0 chunks"):
                DECODER.decode(data)
