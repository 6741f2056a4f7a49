"""Whatever surrounds the pixels costs next to nothing, and what cameras and encoders write there does no harm."""

import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from contextlib import suppress
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.errors import ClientFault, CorruptImage, TooManyPixels, UnsupportedFormat
from service.preprocessing import metadata
from service.preprocessing.decode import MAX_RUN_LENGTH_BYTES, MAX_SIDE, Decoder
from service.preprocessing.tiff import MAX_STRIPS, MAX_TAGS
from tests.decode_costs import LARGEST, most_seconds
from tests.hostile_images import (
    NAMES,
    bmp_of_run_lengths,
    exif,
    gray_tags,
    in_jpeg,
    in_png,
    scans,
    segment,
    tiff,
    tiff_of_numbers,
    tiff_of_strips,
    tiff_of_tags,
    tiff_of_tiles,
)
from tests.images import SMALL_NAMES, Pixels, encode, picture, png_chunk, png_header, sample

DECODER = Decoder(2**25, 50_000_000, least_side=48)
UPRIGHT = picture(40, 30)
RUNS = b"\4\5\0\0" * 4
RANDOM = Random(1)
PROFILE, XMP = RANDOM.randbytes(700_000), b"<x>" + bytes(3_000_000) + b"</x>"


@pytest.fixture(scope="module")
def costs() -> Any:
    """Of each hostile image the seconds, the mebibytes and the outcome."""
    command = [sys.executable, "-m", "tests.decode_costs"]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_image_takes_neither_time_nor_memory(name: str, costs: Any) -> None:
    assert costs[name] is not None, "the process that decoded it died"
    seconds, mebibytes, outcome = costs[name]
    assert seconds < most_seconds(name), outcome
    assert mebibytes < (550 if name in LARGEST else 200), outcome


def _decoded(data: bytes) -> Pixels:
    image = DECODER.decode(DECODER.image_bytes(data, False))
    return np.asarray(Image.fromarray(image.pixels).transpose(image.transpose)) if image.transpose else image.pixels


@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        ("JPEG", {"icc_profile": PROFILE, "comment": b"c" * 60_000, "xmp": XMP[:60_000]}),
        ("PNG", {"icc_profile": PROFILE}),
        ("WEBP", {"icc_profile": PROFILE, "xmp": XMP}),
        ("TIFF", {"icc_profile": PROFILE, "tiffinfo": {700: XMP}}),
        ("TIFF", {"icc_profile": PROFILE, "tiffinfo": {700: XMP}, "compression": "tiff_lzw"}),
        ("AVIF", {"icc_profile": PROFILE, "xmp": XMP}),
    ],
)
def test_large_metadata_changes_nothing(image_format: str, options: dict[str, Any]) -> None:
    image = Image.fromarray(UPRIGHT)
    np.testing.assert_array_equal(
        _decoded(encode(image, image_format, **options)), _decoded(encode(image, image_format))
    )


def _thumbnail() -> bytes:
    """EXIF that holds a whole JPEG, as cameras write it."""
    small = encode(Image.fromarray(picture(160, 120)), "JPEG")
    return exif((271, 2, 4, b"abc"), (274, 3, 1, 6)) + small


SOUND_JPEGS: dict[str, bytes] = {
    "a thumbnail": in_jpeg(segment(0xE1, _thumbnail())),
    "extended XMP": in_jpeg(*[segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + bytes(65_000))] * 60),
    "a depth map": in_jpeg(*[segment(0xEB, RANDOM.randbytes(65_000))] * 60),
    "an editor's notes": in_jpeg(*[segment(0xED, b"Adobe_Photoshop2.5:" + bytes(65_000))] * 2),
    "a film behind it": in_jpeg() + RANDOM.randbytes(9_000_000),
    "another picture behind it": in_jpeg() + encode(Image.fromarray(picture(90, 80)), "JPEG", progressive=True) * 20,
}


@pytest.mark.parametrize("name", SOUND_JPEGS)
def test_what_cameras_add_to_a_jpeg_is_passed_over(name: str) -> None:
    plain, stripped = _decoded(in_jpeg()), metadata.strip(in_jpeg()).data
    # Its orientation stands beside the thumbnail.
    expected = np.rot90(plain, -1) if name == "a thumbnail" else plain
    np.testing.assert_array_equal(_decoded(SOUND_JPEGS[name]), expected)
    assert metadata.strip(SOUND_JPEGS[name]).data.startswith(stripped)


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG"])
def test_of_hundreds_of_frames_the_first_is_read(image_format: str) -> None:
    frames = [Image.fromarray(picture(20, 14, seed)).quantize(16) for seed in range(300)]
    frames = frames if image_format == "GIF" else [frame.convert("RGB") for frame in frames]
    options = {"lossless": True} if image_format == "WEBP" else {}
    data = encode(frames[0], image_format, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(_decoded(data), np.asarray(frames[0].convert("RGB")))


def _raw_profile(block: bytes) -> bytes:
    return b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n%8d\n" % len(block) + block.hex().encode() + b"\n")


TURNED_ON_ITS_SIDE = exif((274, 3, 1, 6))
XMP_SIDE = b'<rdf:Description tiff:Orientation="6"/>'
ORIENTED: dict[str, Callable[[], bytes]] = {
    "png exif": lambda: in_png(png_chunk(b"eXIf", TURNED_ON_ITS_SIDE[6:])),
    "png exif as text": lambda: in_png(png_chunk(b"zTXt", _raw_profile(TURNED_ON_ITS_SIDE))),
    "png xmp": lambda: in_png(png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP_SIDE)),
    "png compressed xmp": lambda: in_png(
        png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP_SIDE + XMP))
    ),
    "png exif before xmp": lambda: in_png(
        png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP_SIDE.replace(b"6", b"3")),
        png_chunk(b"eXIf", TURNED_ON_ITS_SIDE),
    ),
    "jpeg exif": lambda: in_jpeg(segment(0xE1, TURNED_ON_ITS_SIDE)),
    "jpeg exif in a long": lambda: in_jpeg(segment(0xE1, exif((274, 4, 1, 6)))),
    "jpeg exif in a signed short": lambda: in_jpeg(segment(0xE1, exif((274, 8, 1, 6)))),
    "jpeg exif in exif": lambda: in_jpeg(segment(0xE1, TURNED_ON_ITS_SIDE[:6] + TURNED_ON_ITS_SIDE)),
    "jpeg xmp": lambda: in_jpeg(segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP_SIDE)),
    "webp xmp": lambda: encode(Image.fromarray(UPRIGHT), "WEBP", lossless=True, xmp=XMP_SIDE),
    "avif": lambda: encode(Image.fromarray(UPRIGHT), "AVIF", exif=TURNED_ON_ITS_SIDE),
}  # fmt: skip


@pytest.mark.parametrize("make", ORIENTED.values(), ids=ORIENTED)
def test_orientation_is_found_wherever_encoders_write_it(make: Callable[[], bytes]) -> None:
    assert np.abs(_decoded(make()).astype(float) - np.rot90(UPRIGHT, -1)).mean() < 6


@pytest.mark.parametrize(
    ("within", "over", "fault"),
    [
        (
            scans(0xC2, 3, 64, [(0, 0, 0, 0, b"\0")] * (metadata.MAX_PASSES // 3), 3),
            scans(0xC2, 3, 64, [(0, 0, 0, 0, b"\0")] * (metadata.MAX_PASSES // 3 + 1), 3),
            UnsupportedFormat,
        ),
        (tiff_of_strips(MAX_STRIPS), tiff_of_strips(MAX_STRIPS + 1), UnsupportedFormat),
        (tiff_of_tiles(9, 9, 2048, 2048), tiff_of_tiles(9, 9, 2048, 2064), TooManyPixels),
        (tiff_of_tiles(4096, 300, 4096, 16, 6), tiff_of_tiles(4096, 1, 16, 4096, 6), TooManyPixels),
        (tiff_of_numbers(5, 24_900, 40_000, 40_001), tiff_of_numbers(5, 25_100, 40_000, 40_001), UnsupportedFormat),
        (tiff_of_tags(MAX_TAGS), tiff_of_tags(MAX_TAGS + 1), UnsupportedFormat),
        (tiff_of_strips(9), tiff_of_strips(9)[:-45], CorruptImage),
        (
            bmp_of_run_lengths(4, 4, RUNS),
            bmp_of_run_lengths(4, 4, RUNS + bytes(MAX_RUN_LENGTH_BYTES)),
            UnsupportedFormat,
        ),
        (encode(Image.new("L", (1, MAX_SIDE)), "PNG"), encode(Image.new("L", (1, MAX_SIDE + 1)), "PNG"), TooManyPixels),
        (in_png(), png_header(MAX_SIDE + 1, 1) + png_chunk(b"IDAT", b""), TooManyPixels),
    ],
    ids=[
        "scans", "strips", "tiles", "turned tiles", "numbers", "tags", "cut tags", "run lengths",
        "height", "width",
    ],
)  # fmt: skip
def test_each_limit_lets_pass_what_is_within_it(within: bytes, over: bytes, fault: type[Exception]) -> None:
    assert _decoded(within).size
    with pytest.raises(fault) as caught:
        _decoded(over)
    assert len(str(caught.value)) < 200


def test_a_tag_that_libtiff_and_pillow_read_otherwise_is_refused_where_it_matters() -> None:
    pixel = [*gray_tags(1, 1), (273, 4, 1, 8), (279, 4, 1, 1)]
    assert _decoded(tiff([*pixel, (305, 3, 1, 0), (305, 4, 1, 0)])).size  # some programs sign twice
    for hidden in ([(322, 3, 1, 16), (322, 4, 1, 16)], [(322, 17, 1, 8)]):
        with pytest.raises(CorruptImage, match="in two ways"):
            _decoded(tiff([*pixel, *hidden]))


def test_an_orientation_is_looked_for_among_as_many_tags_as_a_tiff_may_have() -> None:
    for before, expected in ((MAX_TAGS - 1, 6), (MAX_TAGS, None)):
        assert metadata.orientation(exif(*[(1, 4, 1, 0)] * before, (274, 3, 1, 6)), b"") == expected


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("where", ["PIL.ImageFile.ImageFile.__init__", "PIL.ImageFile.ImageFile.load"])
def test_a_lack_of_memory_is_not_blamed_on_the_client(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(where, exhausted)
    with pytest.raises(MemoryError):
        _decoded(in_png())


@pytest.mark.parametrize("name", SMALL_NAMES)
def test_every_beginning_of_a_file_is_looked_at_without_surprise(name: str) -> None:
    data = sample(name).data
    for end in range(min(len(data), 700)):
        with suppress(ClientFault):
            metadata.strip(data[:end])


def test_a_little_endian_bigtiff_is_read() -> None:
    np.testing.assert_array_equal(_decoded(encode(Image.fromarray(UPRIGHT), "TIFF", big_tiff=True)), UPRIGHT)
    with pytest.raises(UnsupportedFormat, match="big-endian"):
        _decoded(b"MM\0+" + struct.pack(">HHQ", 8, 0, 16))


def _jpeg(mode: str = "RGB", **options: Any) -> bytes:
    return encode(Image.new(mode, (40, 30)), "JPEG", **options)


FRAME = b"\xff\xc0\0\x0b\x08\xff\xff\xff\xff\x01\x01\x11\0"


@pytest.mark.parametrize(
    ("jpeg", "size"),
    [
        (_jpeg(), (40, 30)),
        (_jpeg("L"), (40, 30)),
        (_jpeg(progressive=True), (40, 30)),
        (_jpeg("CMYK"), None),
        (_jpeg().replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"), None),
        (_jpeg().replace(b"\x08\0\x1e\0\x28", b"\x08\0\0\0\x28"), None),
        # libjpeg would take what stands after these for their length, and pass over the frame.
        (in_jpeg(b"\xff\xdc\0\0"), None),
        (in_jpeg(b"\xff\xdc\0\1"), None),
        (in_jpeg(FRAME), None),
    ],
    ids=["colours", "gray", "progressive", "CMYK", "12 bits", "no height", "no length", "short length", "two frames"],
)
def test_a_plain_jpegs_size_is_known_where_every_decoder_finds_the_same(
    jpeg: bytes, size: tuple[int, int] | None
) -> None:
    assert metadata.strip(jpeg).plain_jpeg == size


def test_a_jpeg_with_nothing_to_take_out_is_not_copied() -> None:
    plain = _jpeg()
    assert metadata.strip(plain).data is plain
