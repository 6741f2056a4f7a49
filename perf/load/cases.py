"""Requests of every kind, good and hostile, each with what must come back.

Comes in: a way to the service, and the embeddings that it gave for the photographs when it was left alone. Goes out: an
outcome for each request. It must not know of load or time.
"""

import asyncio
import base64
import io
import itertools
import random
import struct
import zlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from PIL import Image

from perf import images
from perf.embeddings import Embeddings, cosines
from perf.load.protocols import JSON, RAW, grpc_request, json_body, with_length
from perf.load.wire import NOTHING, Answer, Wire

_LEAST_COSINE = 0.999
_MOST_ROWS = 8
# A client that gives up does so after up to this long, which is before, while or after its request is worked on.
_PATIENCE_SECONDS = 0.05
# What Triton says when its queue is full, and when a request has waited in it for too long.
_NO_ROOM = ("Exceeds maximum queue size", "Request timeout expired")
# Triton's Python backend fails a whole batch for one request whose lengths lie, which should be alone in its batch.
_BATCH_FAILED = " for inference input 'INPUT_IMAGE'"


class Outcome(Enum):
    """How a request may end; any other end is a `WrongAnswer`."""

    ANSWERED = "answered"
    REFUSED = "refused with its code"
    NO_ROOM = "turned away"
    DROPPED = "dropped by the client"
    BATCH_FAILED = "failed with its batch"


class WrongAnswer(Exception):
    """The answer is not the one that this request must get."""


class Photographs:
    """The shipped photographs without end, in bytes never sent before, each with the embedding that it must get."""

    def __init__(self, expected: Embeddings) -> None:
        """`expected`: float32 `[4, D]`, what the service gave for each when it was alone."""
        self._pictures = images.shipped()
        self._expected = expected
        self._numbers = itertools.count()

    @classmethod
    async def ask(cls, wire: Wire) -> "Photographs":
        """Have each embedded by itself.

        Raises:
            WrongAnswer: one could not be.
        """
        answers = [await wire.post(picture, RAW) for picture in images.shipped()]
        for answer in answers:
            if answer.status != 200:
                raise WrongAnswer(f"{answer.status}: {answer.message}"[:200])
        return cls(np.concatenate([answer.embeddings for answer in answers]))

    def take(self, count: int) -> tuple[list[bytes], Embeddings]:
        """The next JPEGs, and the embeddings (float32 `[count, D]`) that must come back, but for their length."""
        numbers = list(itertools.islice(self._numbers, count))
        indices = [number % len(self._pictures) for number in numbers]
        jpegs = [images.distinct(self._pictures[index], number) for index, number in zip(indices, numbers, strict=True)]
        return jpegs, self._expected[indices]


def _judge(answer: Answer, expected: Embeddings) -> Outcome:
    if answer.status == 503 and any(words in answer.message for words in _NO_ROOM):
        return Outcome.NO_ROOM
    if answer.status in (400, 500) and _BATCH_FAILED in answer.message:
        return Outcome.BATCH_FAILED
    if answer.status != 200:
        raise WrongAnswer(f"{answer.status}: {answer.message}"[:200])
    if answer.embeddings.shape != expected.shape:
        raise WrongAnswer(f"embeddings of shape {answer.embeddings.shape}, not {expected.shape}")
    cosine = cosines(answer.embeddings, expected).min()
    if not cosine >= _LEAST_COSINE:
        raise WrongAnswer(f"an embedding of another image (cosine {cosine:.4f})")
    return Outcome.ANSWERED


def _texts(rows: Sequence[bytes]) -> list[str]:
    return [base64.b64encode(row).decode() for row in rows]


async def _raw(wire: Wire, rows: Sequence[bytes]) -> Answer:
    (row,) = rows
    return await wire.post(row, RAW)


async def _as_json(wire: Wire, rows: Sequence[bytes]) -> Answer:
    return await wire.post(json_body(_texts(rows), base64_encoded=True), JSON)


async def _by_grpc(wire: Wire, rows: Sequence[bytes]) -> Answer:
    return await wire.call(grpc_request(rows, normalize=True))


Send = Callable[[Wire, Sequence[bytes]], Awaitable[Answer]]


@dataclass(frozen=True)
class Case:
    """A kind of request.

    Attributes:
        name: what it is, in a few words.
        share: how often it is sent, relative to the others.
        send: sends one, and says how it ended.
        is_timed: whether it is a good request, whose latency counts.
    """

    name: str
    share: float
    send: Callable[[Wire, Photographs], Awaitable[Outcome]]
    is_timed: bool = False


def _good(name: str, share: float, send: Send, most_rows: int = 1) -> Case:
    async def one(wire: Wire, photographs: Photographs) -> Outcome:
        rows, expected = photographs.take(random.randint(min(2, most_rows), most_rows))
        return _judge(await send(wire, rows), expected)

    return Case(name, share, one, is_timed=True)


def _bad(name: str, send: Callable[[Wire], Awaitable[Answer]], message: str) -> Case:
    async def one(wire: Wire, _: Photographs) -> Outcome:
        answer = await send(wire)
        if answer.status == 400 and message in answer.message:
            return Outcome.REFUSED
        if answer.status == 200:
            raise WrongAnswer(f"{name}: 200, not 400")
        return _judge(answer, NOTHING)

    return Case(name, 1.0, one)


def _impatient(name: str, send: Send) -> Case:
    async def one(wire: Wire, photographs: Photographs) -> Outcome:
        rows, expected = photographs.take(1)
        try:
            answer = await asyncio.wait_for(send(wire, rows), random.uniform(0, _PATIENCE_SECONDS))
        except TimeoutError:
            return Outcome.DROPPED
        return _judge(answer, expected)

    return Case(name, 2.0, one)


def _broken_off(name: str, reset: bool) -> Case:
    async def one(wire: Wire, photographs: Photographs) -> Outcome:
        (row,), _ = photographs.take(1)
        # A third of them are sent whole.
        await wire.break_off(row, min(1.0, random.uniform(0, 1.5)), reset)
        return Outcome.DROPPED

    return Case(name, 2.0, one)


def cases() -> list[Case]:
    """Seven in ten are good requests."""
    good = [
        _good("raw HTTP", 25, _raw),
        _good("JSON", 12, _as_json),
        _good("gRPC", 25, _by_grpc),
        _good("JSON, several rows", 3, _as_json, _MOST_ROWS),
        _good("gRPC, several rows", 5, _by_grpc, _MOST_ROWS),
    ]
    dropped = [
        _broken_off("connection closed midway", reset=False),
        _broken_off("connection reset midway", reset=True),
        _impatient("raw HTTP, client gives up", _raw),
        _impatient("gRPC, client gives up", _by_grpc),
    ]
    return good + dropped + _hostile()


def _hostile() -> list[Case]:
    photograph = images.shipped()[0]
    (text,) = _texts([photograph])
    half, bomb, damaged = photograph[: len(photograph) // 2], _png_header(100_000, 100_000), _damaged_png()
    lie = {**RAW, "Inference-Header-Content-Length": "999999999"}
    by_json = {
        "wrong base64": (json_body(["no base64!"], base64_encoded=True), "invalid_base64: "),
        "unknown parameter": (json_body([text], base64=True), "invalid_parameter: "),
        "parameter of a wrong type": (json_body([text], base64_encoded="true"), "invalid_parameter: "),
        "unknown model": (json_body([text], embed_model="clip"), "unknown_model: "),
        "shape that overflows": (json_body([text], [2**32, 1], base64_encoded=True), "invalid_tensor: "),
        "shape of three dimensions": (json_body([text], [1, 1, 1], base64_encoded=True), "unexpected shape"),
        "one bad row of three": (json_body([text, "AAAA", text], base64_encoded=True), "unsupported_format: row 1: "),
    }
    by_grpc = {
        "truncated JPEG, gRPC": (grpc_request([half]), "corrupt_image: "),
        "empty row": (grpc_request([b""]), "empty_input: "),
        "too many rows": (grpc_request([b"row"] * 1000), "batch-size must be"),
    }
    lies = {
        "length that lies": grpc_request([half], struct.pack("<I", 2**31) + half),
        "more rows than the shape says": grpc_request([half], with_length(half) * 2),
        "fewer rows than the shape says": grpc_request([half, half], with_length(half)),
    }
    raw = {
        "truncated JPEG, HTTP": (half, "corrupt_image: "),
        "damaged PNG": (damaged, "corrupt_image: "),
        "no image": (b"this is no image, it is a sentence", "unsupported_format: "),
        "header of a bomb": (bomb, "too_many_pixels: "),
    }
    return [
        *(_bad(name, _posting(body, JSON), message) for name, (body, message) in by_json.items()),
        *(_bad(name, _posting(body, RAW), message) for name, (body, message) in raw.items()),
        *(_bad(name, _calling(request), message) for name, (request, message) in by_grpc.items()),
        *(_bad(name, _calling(request), "") for name, request in lies.items()),
        _bad("header length that lies", _posting(photograph, lie), ""),
        _bad("half a JSON", _posting(json_body([text])[:1000], JSON), ""),
    ]


def _posting(body: bytes, headers: dict[str, str]) -> Callable[[Wire], Awaitable[Answer]]:
    return lambda wire: wire.post(body, headers)


def _calling(request: Any) -> Callable[[Wire], Awaitable[Answer]]:
    return lambda wire: wire.call(request)


def _damaged_png() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, "PNG")
    png = bytearray(buffer.getvalue())
    png[len(png) // 2] ^= 0xFF
    return bytes(png)


def _png_header(width: int, height: int) -> bytes:
    """A PNG that announces a size and has next to no pixels behind it."""
    chunks = {b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT": zlib.compress(b"\0" * 1000)}
    packed = [
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks.items()
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)
