"""Every format shows the pixels that went into it; whatever else comes in is a client's fault with a code."""

import base64
import binascii
import dataclasses
import json
import math
import re
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from service.errors import (
    ClientFault,
    CorruptImage,
    EmptyInput,
    InvalidBase64,
    TooManyBytes,
    TooManyPixels,
    UnsupportedFormat,
)
from service.preprocessing.decode import FORMATS, DecodedImage, Decoder
from tests.hostile_images import in_jpeg, segment
from tests.images import (
    NAMES,
    SMALL_NAMES,
    Sample,
    encode,
    oriented,
    picture,
    png_16_bit,
    png_chunk,
    png_header,
    sample,
    tiff_tile_bomb,
)

# Of damaged metadata and pictures Pillow warns; in the service that is logged.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")

Pixels = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]
PLAIN = Decoder(2**25, 50_000_000)
# JPEGs past Pillow; the second one also at reduced scales.
FULL_SCALE = dataclasses.replace(PLAIN, least_side=10**9)
REDUCED = dataclasses.replace(PLAIN, least_side=24)
TURNED: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}
# What Pillow would read if it were let.
FOREIGN = ("PDF", "EPS", "ICO", "PPM", "TGA", "JPEG2000", "PCX", "SGI", "DDS", "DIB")
OF_TWO_PICTURES = ("mpo", "png_animated", "webp_animated", "gif_animated", "tiff_lzw_pages")
# A sound image with bytes after its end, so that every length of base64 padding comes up.
PADDED = [sample("one_pixel").data + b"\0" * extra for extra in range(3)]
TEXT = base64.b64encode(sample("one_pixel").data)
JPEG_OPTIONS: dict[str, dict[str, Any]] = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:1:1": {"subsampling": "4:1:1"},
    "RGB": {"keep_rgb": True},
    "restarts": {"restart_marker_blocks": 3},
    "progressive": {"progressive": True},
}
JPEGS = {name: sample(name).data for name in SMALL_NAMES if sample(name).format in ("JPEG", "MPO")} | {
    name: encode(Image.fromarray(picture(83, 61, 3)), "JPEG", **options) for name, options in JPEG_OPTIONS.items()
}
JPEGS["short segments"] = in_jpeg(segment(0xE0, b"JFIF\0"), segment(0xEE, b"Adobe"))
PEAK_SCRIPT = """
import json, re, sys
from pathlib import Path
from service.preprocessing.decode import Decoder
from service.errors import ClientFault
def peak(): return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024
decoder, before = Decoder(2**25, 50_000_000, 672), peak()
try:
    decoder.decode(sys.stdin.buffer.read())
except ClientFault as fault:
    print(json.dumps([fault.code, peak() - before]))
"""


def _read(row: bytes, decoder: Decoder = PLAIN, base64_encoded: bool = False) -> DecodedImage:
    image = decoder.decode(decoder.image_bytes(row, base64_encoded))
    height, width, channels = image.pixels.shape
    assert image.pixels.dtype == np.uint8 and channels == 3
    # The arrays go to torch, which warns of those that cannot be written to.
    assert image.pixels.flags.writeable and image.pixels.flags.c_contiguous
    assert (width, height) == tuple(math.ceil(side) for side in image.extent)
    return image


def _decoded(row: bytes, decoder: Decoder = PLAIN, base64_encoded: bool = False) -> Pixels:
    """The upright pixels of an image at its full size."""
    image = _read(row, decoder, base64_encoded)
    assert image.extent == (image.pixels.shape[1], image.pixels.shape[0])
    if image.transpose is None:
        return image.pixels
    return np.asarray(Image.fromarray(image.pixels).transpose(image.transpose))


def _outcome(data: bytes, decoder: Decoder) -> DecodedImage | type[ClientFault]:
    try:
        return _read(data, decoder)
    except ClientFault as fault:
        return type(fault)


def _assert_shows(pixels: Pixels, expected: Sample, background: Colour | None) -> None:
    assert pixels.shape == (*expected.shown.shape[:2], 3)
    step = 1 if pixels.size < 10**7 else 10
    thinned = dataclasses.replace(expected, shown=expected.shown[::step, ::step])
    error = np.abs(pixels[::step, ::step] - thinned.over(background))
    if expected.tolerance:
        assert error.mean() <= expected.tolerance
    else:
        assert error.max() <= 1  # the rounding of compositing


@pytest.mark.parametrize("background", [(255, 255, 255), (10, 200, 30), None], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_each_format_shows_what_went_in(name: str, background: Colour | None) -> None:
    image = sample(name)
    decoder = Decoder(len(image.data), 30_000_000, exif_orientation=False, background=background)
    _assert_shows(_decoded(image.data, decoder), image, background)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", TURNED)
def test_exif_orientation_is_applied_or_not_by_the_setting(orientation: int, image_format: str) -> None:
    stored = oriented(orientation, image_format)
    upright = dataclasses.replace(stored, shown=TURNED[orientation](stored.shown))
    # Pillow, and so the reference, turns TIFF by itself.
    as_stored = upright if image_format == "TIFF" else stored
    for decoder in (PLAIN, FULL_SCALE):
        _assert_shows(_decoded(stored.data, decoder), upright, None)
        _assert_shows(_read(stored.data, decoder).pixels, as_stored, None)
        unturned = _read(stored.data, dataclasses.replace(decoder, exif_orientation=False))
        assert unturned.transpose is None
        _assert_shows(unturned.pixels, as_stored, None)


def test_an_orientation_that_stands_in_xmp_alone_turns_what_pillow_turns() -> None:
    """A TIFF is turned when it is read, whatever size it told before; what turns an AVIF are its boxes."""
    stored = picture(40, 30)
    xmp = b'<x tiff:Orientation="6"/>'
    tiff = encode(Image.fromarray(stored), "TIFF", tiffinfo={700: xmp})
    for decoder in (PLAIN, FULL_SCALE):
        np.testing.assert_array_equal(_read(tiff, decoder).pixels, TURNED[6](stored))
    if features.check("avif"):
        assert _read(encode(Image.fromarray(stored), "AVIF", xmp=xmp), FULL_SCALE).transpose is None


def _planar_tiff(
    samples: npt.NDArray[Any], photometric: int = 2, order: int = 1, compression: int = 1, extra: int = 2
) -> bytes:
    """Each channel of `[H, W, C]` in a plane of its own, the second or fourth of them an extra one, by itself alpha."""
    height, width, channels = samples.shape
    planes = [samples[..., channel].tobytes() for channel in range(channels)]
    bits = struct.pack("<4H", *[8 * samples.itemsize] * channels, *[0] * (4 - channels))
    offsets = struct.pack("<4I", *(16 + len(planes[0]) * each for each in range(4)))
    body = bits + b"".join(planes) + offsets + struct.pack("<4I", *[len(planes[0])] * 4)
    at = 16 + sum(map(len, planes))
    entries = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, channels, 8 if channels > 2 else 0x80008)]
    entries += [(259, 3, 1, compression), (262, 3, 1, photometric), *[(338, 3, 1, extra)] * (channels % 2 == 0)]
    entries += [(273, 4, channels, at), (277, 3, 1, channels), (278, 3, 1, height), (279, 4, channels, at + 16)]
    entries = sorted([*entries, (266, 3, 1, order), (284, 3, 1, 2)])
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return struct.pack("<4sI", b"II*\0", 8 + len(body)) + body + struct.pack("<H", len(entries)) + directory + bytes(4)


def test_planes_of_eight_bits_are_read() -> None:
    stored = picture(40, 30)
    np.testing.assert_array_equal(_decoded(_planar_tiff(stored)), stored)
    opaque = np.dstack([stored, np.full((30, 40), 255, np.uint8)])
    np.testing.assert_array_equal(_decoded(_planar_tiff(opaque)), stored)


@pytest.mark.parametrize(
    "exif",
    [b"Exif\0\0", b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12"],
    ids=["empty", "garbage", "offset", "cut"],
)
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_sound_pixels_survive_broken_exif(image_format: str, exif: bytes) -> None:
    image = Image.fromarray(picture(40, 30))
    expected = _decoded(encode(image, image_format))
    np.testing.assert_array_equal(_decoded(encode(image, image_format, exif=exif)), expected)


def _orientation_entry(kind: int, count: int, value: bytes) -> bytes:
    """EXIF with nothing but an orientation, of any type; its value takes four bytes. A fraction, 6/1, stands at 26."""
    return b"Exif\0\0MM\0*" + struct.pack(">IHHHI", 8, 1, 0x0112, kind, count) + value + struct.pack(">III", 0, 6, 1)


@pytest.mark.parametrize(
    ("kind", "count", "value"),
    [(3, 1, b"\0\0\0\0"), (3, 1, b"\0\x09\0\0"), (2, 2, b"6\0\0\0"), (5, 1, b"\0\0\0\x1a")],
    ids=["zero", "nine", "text", "fraction"],
)
def test_an_orientation_of_no_meaning_is_ignored(kind: int, count: int, value: bytes) -> None:
    stored = picture(40, 30)
    data = encode(Image.fromarray(stored), "PNG", exif=_orientation_entry(kind, count, value))
    np.testing.assert_array_equal(_decoded(data), stored)


def _psd() -> bytes:
    return b"8BPS\0\1" + bytes(6) + b"\0\3\0\0\0\4\0\0\0\4\0\x08\0\3" + bytes(70)


def _tiff_with(tag: int, value: int, in_place_of: int) -> bytes:
    entry, other = (struct.pack("<HHII", tag, 3, 1, number) for number in (in_place_of, value))
    return encode(Image.new("F", (4, 4)), "TIFF").replace(entry, other)


def _gif_of_a_hidden_frame() -> bytes:
    """Behind an empty block Pillow takes a "," and a frame for a block of 44 bytes, and finds another frame."""
    large = b"!\xf9\4\x08\0\0\0\0," + struct.pack("<HHHHB", 0, 0, 13_000, 13_000, 0)
    return b"GIF89a\4\0\4\0\0\0\0!\xf9\0," + struct.pack("<4H", 0, 0, 4, 4).ljust(45, b"\0") + large + b"\2\1\0\0;"


def _bmp_of(bits: int) -> bytes:
    data = encode(Image.new("RGB", (4, 4)), "BMP")
    return data[:28] + struct.pack("<H", bits) + data[30:]


def _jpeg_of(frame: int, bits: int = 8) -> bytes:
    data = encode(Image.new("L", (4, 4)), "JPEG")
    return data.replace(b"\xff\xc0\0\x0b\x08", bytes([0xFF, frame, 0, 11, bits]))


HOSTILE: dict[str, tuple[bytes, bool, type[ClientFault], str]] = {
    "empty": (b"", False, EmptyInput, "no bytes"),
    "empty base64": (b"", True, EmptyInput, "no bytes"),
    "text": (b"an image of a cat, please", False, UnsupportedFormat, "none of JPEG, PNG"),
    "one byte": (b"\xff", False, UnsupportedFormat, "none of"),
    "psd": (_psd(), False, UnsupportedFormat, "none of"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", False, UnsupportedFormat, "none of"),
    "heic": (b"\0\0\0\x18ftypheic" + bytes(40), False, UnsupportedFormat, "none of"),
    "base64 not announced": (TEXT, False, UnsupportedFormat, "set the request parameter base64_encoded to true"),
    "data URI not announced": (b"data:image/png;base64," + TEXT, False, UnsupportedFormat, "base64_encoded"),
    "base64 of text": (base64.b64encode(b"a cat, please"), True, UnsupportedFormat, "none of"),
    "line breaks": (binascii.b2a_base64(sample("jpeg_photo").data), True, InvalidBase64, "line breaks"),
    "spaces": (TEXT[:8] + b" " + TEXT[8:], True, InvalidBase64, "spaces"),
    "data URI": (b"data:image/png;base64," + TEXT, True, InvalidBase64, "data: URI"),
    "no padding": (base64.b64encode(PADDED[1]).rstrip(b"="), True, InvalidBase64, "padding"),
    "one character": (b"A", True, InvalidBase64, "padding"),
    "another alphabet": (base64.urlsafe_b64encode(b"\xff\xef" * 9), True, InvalidBase64, "alphabet"),
    "raw bytes as base64": (sample("jpeg_photo").data, True, InvalidBase64, ""),
    "32-bit integers": (encode(Image.new("I", (4, 4)), "TIFF"), False, UnsupportedFormat, "32 bits"),
    "32-bit floats": (encode(Image.new("F", (4, 4)), "TIFF"), False, UnsupportedFormat, "32 bits"),
    "64-bit floats": (_tiff_with(258, 64, 32), False, UnsupportedFormat, "TIFF of this kind is not read"),
    "TIFF of JPEG 2000": (_tiff_with(259, 34712, 1), False, UnsupportedFormat, "compression 34712 is not read"),
    "TIFF of WebP": (_tiff_with(259, 50001, 1), False, UnsupportedFormat, "compression 50001 is not read"),
    "TIFF of LZMA": (_tiff_with(259, 34925, 1), False, UnsupportedFormat, "compression 34925 is not read"),
    "planes of 16 bits": (_planar_tiff(picture(4, 4).astype("<u2")), False, UnsupportedFormat, "samples stored"),
    "planes of brightness and colour": (_planar_tiff(picture(4, 4), 6), False, UnsupportedFormat, "samples stored"),
    "planes of LAB": (_planar_tiff(picture(4, 4), 8), False, UnsupportedFormat, "samples stored"),
    "planes of bits in reverse": (_planar_tiff(picture(4, 4), order=2), False, UnsupportedFormat, "samples stored"),
    "planes of gray and alpha": (_planar_tiff(picture(4, 4)[..., :2], 1), False, UnsupportedFormat, "samples stored"),
    "planes of gray and alpha, compressed": (
        _planar_tiff(picture(4, 4)[..., :2], 1, compression=8),
        False,
        UnsupportedFormat,
        "samples stored",
    ),
    "planes of gray and alpha, premultiplied": (
        _planar_tiff(picture(4, 4)[..., :2], 1, extra=1),
        False,
        UnsupportedFormat,
        "samples stored",
    ),
    "planes of colour and another": (
        _planar_tiff(np.zeros((4, 4, 4), np.uint8), extra=0),
        False,
        UnsupportedFormat,
        "of this kind is not read",
    ),
    "brightness and colour": (
        encode(Image.new("YCbCr", (4, 4)), "TIFF"),
        False,
        UnsupportedFormat,
        "samples stored",
    ),
    "a film": (b"\0\0\0\x18ftypisom\0\0\2\0isomavc1" + bytes(40), False, UnsupportedFormat, "none of"),
    "BMP of 13 bits": (_bmp_of(13), False, UnsupportedFormat, "Unsupported BMP pixel depth (13)"),
    "heic that begins as an avif": (
        b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(40),
        False,
        UnsupportedFormat,
        "none of",
    ),
    "12-bit JPEG": (_jpeg_of(0xC1, 12), False, UnsupportedFormat, "(cannot handle 12-bit layers)"),
    "lossless JPEG": (_jpeg_of(0xC3), False, UnsupportedFormat, "lossless"),
    "JPEG-LS": (_jpeg_of(0xF7), False, UnsupportedFormat, "lossless"),
    "arithmetic-coded JPEG": (_jpeg_of(0xC9), False, UnsupportedFormat, "arithmetic"),
    "arithmetic-coded progressive JPEG": (_jpeg_of(0xCA), False, UnsupportedFormat, "arithmetic"),
    "header without an end": (png_header(4, 4)[:20], False, CorruptImage, "header"),
    "no width": (png_header(0, 4) + png_chunk(b"IDAT", b""), False, CorruptImage, "header"),
    "header without pixels": (png_header(4, 4) + png_chunk(b"IDAT", b""), False, CorruptImage, "PNG"),
    "wrong checksum": (png_header(4, 4)[:-1] + b"?" + sample("one_pixel").data[33:], False, CorruptImage, "header"),
}


@pytest.mark.parametrize(("row", "base64_encoded", "fault", "words"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_input_is_refused_in_one_line(
    row: bytes, base64_encoded: bool, fault: type[ClientFault], words: str
) -> None:
    with pytest.raises(ClientFault) as caught:
        _read(row, REDUCED, base64_encoded)
    assert type(caught.value) is fault
    line = str(caught.value)
    assert line.startswith(f"{fault.code}: ") and words in line
    assert len(line) < 300 and line.isprintable()


@pytest.mark.parametrize("image_format", FOREIGN)
def test_formats_outside_the_list_never_reach_their_decoder(image_format: str) -> None:
    data = encode(Image.fromarray(picture(16, 16)), image_format)
    with pytest.raises(UnsupportedFormat):
        PLAIN.decode(data)


@pytest.mark.parametrize("signature", [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0", b"MM\0*"])
def test_a_known_signature_before_rubbish_is_damage(signature: bytes) -> None:
    with pytest.raises(CorruptImage):
        PLAIN.decode(signature + b"\x01rubbish")


@pytest.mark.parametrize("name", SMALL_NAMES)
def test_a_truncated_image_is_a_fault_or_whole(name: str) -> None:
    data = sample(name).data
    whole = _decoded(data)
    cuts = {*np.linspace(1, len(data) - 1, 24).astype(int).tolist(), *range(len(data) - 13, len(data))}
    for cut in sorted(cuts):
        try:
            decoded = _decoded(data[:cut])
        except (CorruptImage, UnsupportedFormat):
            continue
        # Nothing but what follows the (first) picture was cut away.
        np.testing.assert_array_equal(decoded, whole, err_msg=f"cut to {cut} of {len(data)} bytes")


@pytest.mark.parametrize("name", SMALL_NAMES)
def test_half_a_picture_is_corrupt(name: str) -> None:
    data = sample(name).data
    pictures = 2 if name in OF_TWO_PICTURES else 1
    with pytest.raises(CorruptImage):
        PLAIN.decode(data[: len(data) // (2 * pictures)])


@pytest.mark.parametrize("image", PADDED, ids=len)
@pytest.mark.parametrize("base64_encoded", [False, True])
def test_the_limit_of_bytes_is_exact(image: bytes, base64_encoded: bool) -> None:
    row = base64.b64encode(image) if base64_encoded else image
    assert _decoded(row, Decoder(len(image), 1), base64_encoded).shape == (1, 1, 3)
    with pytest.raises(TooManyBytes, match=f"the image has {len(image)} bytes, the limit is {len(image) - 1}$"):
        Decoder(len(image) - 1, 1).image_bytes(row, base64_encoded)


@pytest.mark.parametrize("name", SMALL_NAMES)
def test_the_limit_of_pixels_is_exact(name: str) -> None:
    image = sample(name)
    limit = image.size[0] * image.size[1]
    assert Decoder(2**25, limit).decode(image.data).pixels.size
    with pytest.raises(TooManyPixels, match=f"the limit of {limit - 1} pixels"):
        Decoder(2**25, limit - 1, least_side=24).decode(image.data)


ANNOUNCED = {
    "100000x100000": (png_header(100_000, 100_000) + png_chunk(b"IDAT", b""), TooManyPixels.code),
    "10000x10000": (png_header(10_000, 10_000) + png_chunk(b"IDAT", b""), TooManyPixels.code),
    "bmp": (b"BM" + bytes(12) + b"\x28\0\0\0\0\0\1\0\0\0\1\0\1\0\x18\0" + bytes(24), TooManyPixels.code),
    "gif of a large frame that is disposed of": (
        b"GIF89a\4\0\4\0\0\0\0!\xf9\4\x08\0\0\0\0," + struct.pack("<HHHHB", 0, 0, 13_000, 13_000, 0) + b"\2\1\0\0;",
        TooManyPixels.code,
    ),
    "gif of a large frame behind an empty block": (_gif_of_a_hidden_frame(), CorruptImage.code),
    "within the limit but no data": (png_header(7_000, 7_000) + png_chunk(b"IDAT", b""), CorruptImage.code),
    "tiff of one huge tile": (tiff_tile_bomb(16, 20_000), TooManyPixels.code),
}


@pytest.mark.parametrize(("data", "code"), ANNOUNCED.values(), ids=ANNOUNCED)
def test_announced_pixels_are_refused_before_memory_is_taken(data: bytes, code: str) -> None:
    # Pillow's memory is invisible to tracemalloc, and the peak of this process is behind it: ask a fresh one.
    command = [sys.executable, "-W", "ignore", "-c", PEAK_SCRIPT]
    report = subprocess.run(command, input=data, capture_output=True, check=True, timeout=60)
    found, megabytes = json.loads(report.stdout)
    assert megabytes < 50
    assert found == code


@pytest.mark.parametrize("options", [{"quality": 50}, {"lossless": True}, {"exif": b"Exif\0\0"}, {"save_all": True}])
def test_a_webp_is_measured_before_pillow_takes_memory_for_it(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.preprocessing.decode._open", None)
    with pytest.raises(TooManyPixels, match="70x71 is over the limit"):
        Decoder(2**25, 70 * 71 - 1).decode(encode(Image.new("RGB", (70, 71)), "WEBP", **options))


@pytest.mark.parametrize("name", SMALL_NAMES)
def test_strips_of_an_image_are_the_same_image(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = PLAIN.decode(sample(name).data).pixels
    monkeypatch.setattr("service.preprocessing.pillow_compat._STRIP_PIXELS", 100)
    np.testing.assert_array_equal(PLAIN.decode(sample(name).data).pixels, whole)


def test_gray_of_16_bits_with_a_transparent_value_takes_few_bytes_a_pixel() -> None:
    samples = np.arange(10**6, dtype=np.uint32).reshape(1000, 1000).astype(np.uint16)
    data = png_16_bit(samples, 0, png_chunk(b"tRNS", b"\0\7"))
    tracemalloc.start()
    try:
        PLAIN.decode(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 9 * samples.size


@pytest.mark.parametrize("name", SMALL_NAMES)
def test_base64_is_the_same_image(name: str) -> None:
    data = sample(name).data
    np.testing.assert_array_equal(_decoded(base64.b64encode(data), base64_encoded=True), _decoded(data))


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(
    data=st.binary(max_size=20),
    places=st.lists(st.tuples(st.integers(0, 40), st.sampled_from(b"Az09+/==-_\n \0\xff")), max_size=3),
    cut=st.integers(0, 40),
)
def test_base64_is_what_the_standard_says_and_nothing_else(
    data: bytes, places: list[tuple[int, int]], cut: int
) -> None:
    text = bytearray(base64.b64encode(data))
    for place, byte in places:
        text[place : place + cut % 2] = [byte]  # in the place of another one, or between two
    text = text[: len(text) - cut // 10]
    row = bytes(text) or b"="
    if re.fullmatch(rb"([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?", row):
        assert PLAIN.image_bytes(row, True) == base64.b64decode(row, validate=True)
    else:
        with pytest.raises(InvalidBase64):
            PLAIN.image_bytes(row, True)


@pytest.mark.parametrize("data", JPEGS.values(), ids=JPEGS)
def test_past_pillow_a_jpeg_has_the_same_pixels(data: bytes) -> None:
    np.testing.assert_array_equal(_decoded(data, FULL_SCALE), _decoded(data))


@pytest.mark.parametrize("size", [(1, 1), (7, 7), (8, 5), (16, 17), (1, 300), (300, 1)], ids=str)
@pytest.mark.parametrize("options", JPEG_OPTIONS.values(), ids=JPEG_OPTIONS)
def test_no_size_is_too_small_for_the_way_past_pillow(size: tuple[int, int], options: dict[str, Any]) -> None:
    data = encode(Image.fromarray(picture(*size)), "JPEG", **options)
    np.testing.assert_array_equal(_decoded(data, FULL_SCALE), _decoded(data))


@pytest.mark.parametrize(
    ("width", "height", "least_side", "scale"),
    [
        (403, 299, 24, 8),
        (403, 299, 37, 8),
        (403, 299, 38, 4),
        (403, 299, 74, 4),
        (403, 299, 75, 2),
        (299, 403, 149, 2),
        (403, 299, 150, 1),
        (403, 299, 10**6, 1),
        (401, 297, 30, 8),
        (400, 296, 37, 8),
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("image_format", ["JPEG", "MPO"])
def test_a_large_jpeg_is_reduced_as_long_as_both_sides_keep_the_least(
    image_format: str, mode: str, width: int, height: int, least_side: int, scale: int
) -> None:
    shown = Image.fromarray(picture(width, height)).convert(mode)
    image = _read(encode(shown, image_format, quality=95), dataclasses.replace(PLAIN, least_side=least_side))
    assert image.extent == (width / scale, height / scale)
    rows, columns = height // scale, width // scale  # of whole pixels
    assert image.pixels.shape == (math.ceil(height / scale), math.ceil(width / scale), 3)
    blocks = np.asarray(shown.convert("RGB"), np.float64)[: rows * scale, : columns * scale]
    means = blocks.reshape(rows, scale, columns, scale, 3).mean(axis=(1, 3))
    assert np.abs(image.pixels[:rows, :columns] - means).mean() < 2


@pytest.mark.parametrize("name", [name for name in SMALL_NAMES if name not in JPEGS])
def test_no_other_format_is_reduced(name: str) -> None:
    data = sample(name).data
    np.testing.assert_array_equal(_decoded(data, dataclasses.replace(PLAIN, least_side=1)), _decoded(data))


def _damaged_jpegs(data: bytes) -> Iterator[bytes]:
    """Cut, with something behind its end, with bytes overwritten, and with a piece cut out or put in."""
    random = Random(len(data))
    yield from (data[:cut] for cut in np.linspace(1, len(data) - 1, 60).astype(int))
    yield from (data[:-cut] for cut in range(1, 14))
    yield from (data + tail for tail in (b"\0", bytes(1000), data, b"\xff\xd9", b"\xff\xd8\xff"))
    for reach in [len(data), 700] * 60:
        damaged = bytearray(data)
        for _ in range(random.choice((1, 1, 2, 5, 20))):
            damaged[random.randrange(min(reach, len(data)))] = random.randrange(256)
        yield bytes(damaged)
    for start in random.sample(range(len(data)), 60):
        piece = random.choice((b"", random.randbytes(30), data[start : start + 60]))
        yield data[:start] + piece + data[start + random.randrange(60) :]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("data", JPEGS.values(), ids=JPEGS)
def test_of_a_damaged_jpeg_becomes_the_same_past_pillow(data: bytes) -> None:
    for number, damaged in enumerate(_damaged_jpegs(data)):
        expected, found, reduced = (_outcome(damaged, decoder) for decoder in (PLAIN, FULL_SCALE, REDUCED))
        if isinstance(expected, DecodedImage):
            assert isinstance(found, DecodedImage) and isinstance(reduced, DecodedImage), number
            np.testing.assert_array_equal(found.pixels, expected.pixels, err_msg=f"damage {number}")
            assert found.transpose == reduced.transpose == expected.transpose
        else:
            assert found is reduced is expected, number


def test_every_format_of_the_list_has_a_sample() -> None:
    assert {sample(name).format for name in NAMES} - {"MPO"} == set(FORMATS)
