"""The images that are sent: the shipped photographs, made distinct, for a service may encode equal bytes only once."""

import base64
import itertools
import json
import random
from collections.abc import Iterator

from perf.photographs import BASE64_JSON, INPUT_NAME, encode_jpeg, render

# More than two batches of 60, so that one image is never twice in the works.
DISTINCT_IMAGES = 256
_LARGE_PIXELS = (4000, 3000)
_LARGE_QUALITY = 90


def shipped() -> list[bytes]:
    """The JPEGs of `perf/data/base64.json`."""
    entries = json.loads(BASE64_JSON.read_text())["data"]
    return [base64.b64decode(text) for entry in entries for text in entry[INPUT_NAME]]


def distinct(jpeg: bytes, number: int) -> bytes:
    """The same picture in other bytes: `number` (0 or more, below 2**64) as a comment behind the start marker."""
    return jpeg[:2] + b"\xff\xfe\x00\x0a" + number.to_bytes(8, "big") + jpeg[2:]


def workload(count: int = DISTINCT_IMAGES) -> list[bytes]:
    """`count` JPEGs of distinct bytes, the shipped ones in turn."""
    pictures = shipped()
    return [distinct(pictures[number % len(pictures)], number) for number in range(count)]


def repeating(share: float, seed: int) -> Iterator[bytes]:
    """JPEGs without end, of which `share` (0 to 1) have been sent before: first the workload, then a mix.

    What is not a repeat has never been sent before, by this or by an iterator of another seed (1 or more).
    """
    known, pictures, rng = workload(), shipped(), random.Random(seed)
    yield from known
    for number in itertools.count(seed << 32):
        yield rng.choice(known) if rng.random() < share else distinct(pictures[number % len(pictures)], number)


def large(count: int) -> list[bytes]:
    """`count` JPEGs of 12 megapixels."""
    return [encode_jpeg(render(index, *_LARGE_PIXELS), _LARGE_QUALITY) for index in range(count)]
