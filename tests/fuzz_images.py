"""A corpus of small images and what damages them, the same for the same seed: `damaged(seed)`.

As a program (`python -m tests.fuzz_images first step count file`) it decodes and resizes damaged images, of the seeds
`first, first + step, ...`. It prints a line for each that raises anything but a client's fault or takes over a second,
and notes in the file which seed it is at, so that whoever started it knows which one a crash belongs to.
"""

import functools
import logging
import mmap
import signal
import struct
import sys
import time
import warnings
import zlib
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image, _imaging, features

from tests.hostile_images import scans
from tests.images import SMALL_NAMES, encode, picture, sample
from tests.webps import TRANSFORMS, riff, stream, vp8l

SECONDS = 1.0
"""Of the processor, for one image."""
_WATCHDOG_SECONDS = 60
_MAX_PIXELS = 50_000
_SIZE = (24, 18)
_LOSSY_TIFF = {"jpeg": ("L", "RGB", "CMYK"), "group3": ("1",), "group4": ("1",)}
_TIFF_COMPRESSIONS = ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd")
_ALL = {"1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "LAB", "YCbCr"}
_NOTABLE = (0, 1, 2, 3, 4, 7, 8, 15, 16, 127, 128, 255, 256, 257, 1000, 32767, 32768, 65535)
_NOTABLE_LONG = (*_NOTABLE, 65536, 10**6, 2**24, 2**31 - 1, 2**31, 2**32 - 16, 2**32 - 1)


def _small(mode: str) -> Image.Image:
    image = Image.fromarray(picture(*_SIZE))
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    if mode == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize(_SIZE))
        return image
    if mode == "LA":
        return _small("RGBA").convert("LA")
    return image.convert("RGB").convert(mode)


def _encoded(image_format: str, mode: str, **options: Any) -> bytes:
    return encode(_small(mode), image_format, **options)


@functools.cache
def corpus() -> tuple[bytes, ...]:
    """Small images of every format and mode, in every way of encoding them."""
    images = [sample(name).data for name in SMALL_NAMES if sample(name).size[0] < 130]
    images += [_encoded("JPEG", mode) for mode in ("L", "RGB", "CMYK")]
    jpeg_options = ({"progressive": True}, {"subsampling": 0}, {"restart_marker_blocks": 1}, {"subsampling": "4:1:1"})
    images += [_encoded("JPEG", "RGB", **options) for options in jpeg_options]
    images += [_encoded("JPEG", "RGB").replace(b"\xff\xc0", bytes([0xFF, kind]), 1) for kind in (0xC1, 0xC5, 0xC9)]
    images += [scans(0xC3, components, _SIZE[0], [(1, 0, 0, 0, b"")], components) for components in (1, 3)]
    exif = Image.Exif()
    exif[0x0112] = 6
    metadata = {"exif": exif, "xmp": b"<x tiff:Orientation='3'/>", "icc_profile": b"profile" * 9, "comment": b"comment"}
    images += [_encoded(name, "RGB", **metadata) for name in ("JPEG", "PNG", "WEBP", "TIFF")]
    images += [_encoded("PNG", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")]
    images += [_encoded("GIF", mode, interlace=interlace) for mode in ("1", "L", "P", "RGBA") for interlace in (0, 1)]
    images += [_encoded("BMP", mode) for mode in ("1", "L", "P", "RGB", "RGBA")]
    images += [_encoded("WEBP", mode, lossless=lossless) for mode in ("RGB", "RGBA") for lossless in (False, True)]
    images.append(riff(vp8l(16, 16, stream([0, 1, 2, 3] * 4, transforms=TRANSFORMS))))
    images += [_encoded("TIFF", mode, compression=kind) for kind in _TIFF_COMPRESSIONS for mode in sorted(_ALL)]
    images += [_encoded("TIFF", mode, compression=kind) for kind, modes in _LOSSY_TIFF.items() for mode in modes]
    images += [_encoded("TIFF", mode, big_tiff=True) for mode in ("L", "RGB")]
    images += [_run_lengths(4), _run_lengths(8)]
    if features.check("avif"):
        images += [_encoded("AVIF", mode, **metadata) for mode in ("L", "RGB", "RGBA")]
    return tuple(images)


def _run_lengths(bits: int) -> bytes:
    """A BMP of run lengths, literal runs, a skip and ends of rows."""
    palette = bytes(range(256)) * (4 if bits == 8 else 1)
    row = b"\x05\x12\0\x04\1\2\3\4\x06\x34\0\0" + b"\0\2\3\1" + b"\x09\x21\0\0"
    data = row * 6 + b"\0\1"
    offset = 54 + (4 << bits)
    header = struct.pack("<IiiHHIIiiII", 40, *_SIZE, 1, bits, 1 if bits == 8 else 2, len(data), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", offset + len(data), 0, 0, offset) + header + palette[: 4 << bits] + data


def damaged(seed: int) -> bytes:
    """The damaged image of this seed."""
    random = Random(seed)
    data = bytearray(random.choice(corpus()))
    for _ in range(random.choice((1, 1, 1, 2, 2, 3, 5, 9))):
        if len(data) > 4:
            random.choice(_DAMAGES)(data, random)
    # Most of them, since Pillow looks no further into a PNG with a wrong checksum.
    return _with_checksums(data) if random.random() < 0.8 else bytes(data)


def _place(data: bytearray, random: Random) -> int:
    """Any place, but more often one in the headers."""
    return random.randrange(random.choice((len(data), min(len(data), 200), min(len(data), 40))))


def _flip_bit(data: bytearray, random: Random) -> None:
    data[_place(data, random)] ^= 1 << random.randrange(8)


def _overwrite(data: bytearray, random: Random) -> None:
    place = _place(data, random)
    size = random.choice((1, 1, 2, 4, 16))
    run = random.choice((random.randbytes(size), bytes(size), b"\xff" * size))
    data[place : place + size] = run


def _overwrite_number(data: bytearray, random: Random) -> None:
    place = _place(data, random)
    order = random.choice("<>")
    if random.random() < 0.5:
        data[place : place + 2] = struct.pack(order + "H", random.choice(_NOTABLE))
    else:
        data[place : place + 4] = struct.pack(order + "I", random.choice(_NOTABLE_LONG))


def _cut(data: bytearray, random: Random) -> None:
    del data[random.randrange(len(data)) :]


def _cut_out(data: bytearray, random: Random) -> None:
    place = _place(data, random)
    del data[place : place + random.choice((1, 2, 4, 12, 100))]


def _repeat(data: bytearray, random: Random) -> None:
    place = _place(data, random)
    data[place:place] = data[place : place + random.choice((1, 4, 12, 40, 200))] * random.choice((1, 1, 5, 50))


def _repeat_part(data: bytearray, random: Random) -> None:
    """Repeat from one marker of a JPEG, or chunk of another format, to a later one."""
    mark = random.choice((b"\xff", b"IDAT", b"!", b",", b"VP8", b"infe", b"Exif", b"\0\0\0"))
    start = data.find(mark, _place(data, random))
    end = data.find(mark, start + 1)
    if 0 <= start < end:
        data[start:start] = data[start:end] * random.choice((1, 2, 20))


def _splice(data: bytearray, random: Random) -> None:
    other = random.choice(corpus())
    start = random.randrange(len(other))
    place = _place(data, random)
    data[place : place + random.choice((0, 20, len(data)))] = other[start : start + random.choice((8, 60, len(other)))]


_DAMAGES = (_flip_bit, _flip_bit, _overwrite, _overwrite, _overwrite_number, _overwrite_number, _cut, _cut_out, _repeat,
            _repeat_part, _splice)  # fmt: skip


def _with_checksums(data: bytearray) -> bytes:
    """Of a PNG, with the checksums of its chunks put right."""
    start = 8
    while data.startswith(b"\x89PNG") and start + 12 <= len(data):
        end = start + 8 + int.from_bytes(data[start : start + 4], "big")
        if end + 4 > len(data):
            break
        data[end : end + 4] = struct.pack(">I", zlib.crc32(data[start + 4 : end]))
        start = end + 4
    return bytes(data)


def main(first: int, step: int, count: int, note: Path) -> None:
    import torch

    from service.errors import ClientFault
    from service.preprocessing.decode import Decoder
    from service.preprocessing.preprocess import Preprocessor

    warnings.simplefilter("ignore")
    logging.getLogger("PIL").addHandler(logging.NullHandler())
    torch.set_num_threads(1)
    _imaging.set_block_size(4096)  # or overrun memory would often be that of another image
    note.write_bytes(bytes(8))
    decoders = [Decoder(2**20, _MAX_PIXELS, least_side) for least_side in (2, None)]
    size = {"size": {"height": 16, "width": 16}}
    preprocessors = [Preprocessor.from_config(size, exact) for exact in (False, True)]
    square = np.empty((16, 16, 3), np.uint8)
    with note.open("r+b") as file, mmap.mmap(file.fileno(), 8) as current:
        for seed in range(first, first + step * count, step):
            current[:] = struct.pack("<Q", seed)
            signal.alarm(_WATCHDOG_SECONDS)  # ends the process, wherever it hangs
            data = damaged(seed)
            start = time.process_time()
            # The least side, in which the two differ, is of no account to other formats than JPEG.
            for decoder in decoders if data.startswith(b"\xff\xd8") else decoders[:1]:
                try:
                    image = decoder.decode(decoder.image_bytes(data, False))
                    for preprocessor in preprocessors:
                        preprocessor.resize_into(square, image.pixels, image.extent, image.transpose)
                except ClientFault as fault:
                    if not str(fault).isprintable():
                        print(f"seed {seed}: {fault!r}", flush=True)
                except BaseException as error:
                    print(f"seed {seed}: {error!r}", flush=True)
            if (seconds := time.process_time() - start) > SECONDS:
                print(f"seed {seed}: {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
