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
# Triton's Python backend fails a whole batch for one request whose lengths lie, which should not get so far.
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


def _bad(name: str, message: str, body: bytes, headers: dict[str, str] = JSON) -> Case:
    return _refused(name, message, lambda wire: wire.post(body, headers))


def _bad_grpc(name: str, message: str, request: Any) -> Case:
    return _refused(name, message, lambda wire: wire.call(request))


def _refused(name: str, message: str, send: Callable[[Wire], Awaitable[Answer]]) -> Case:
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
    half, bomb = photograph[: len(photograph) // 2], _png_header(100_000, 100_000)
    three = [text, "AAAA", text]
    lie = {**RAW, "Inference-Header-Content-Length": "999999999"}
    return [
        _bad("wrong base64", "invalid_base64: ", json_body(["no base64!"], base64_encoded=True)),
        _bad("unknown parameter", "invalid_parameter: ", json_body([text], base64=True)),
        _bad("parameter of a wrong type", "invalid_parameter: ", json_body([text], base64_encoded="true")),
        _bad("unknown model", "unknown_model: ", json_body([text], embed_model="clip")),
        _bad("shape that overflows", "invalid_tensor: ", json_body([text], [2**32, 1], base64_encoded=True)),
        _bad("shape of three dimensions", "unexpected shape", json_body([text], [1, 1, 1], base64_encoded=True)),
        _bad("one bad row of three", "unsupported_format: row 1: ", json_body(three, base64_encoded=True)),
        _bad("truncated JPEG, HTTP", "corrupt_image: ", half, RAW),
        _bad("damaged PNG", "corrupt_image: ", _damaged_png(), RAW),
        _bad("no image", "unsupported_format: ", b"this is no image, it is a sentence", RAW),
        _bad("header of a bomb", "too_many_pixels: ", bomb, RAW),
        _bad("header length that lies", "", photograph, lie),
        _bad("half a JSON", "", json_body([text])[:1000]),
        _bad_grpc("truncated JPEG, gRPC", "corrupt_image: ", grpc_request([half])),
        _bad_grpc("empty row", "empty_input: ", grpc_request([b""])),
        _bad_grpc("too many rows", "batch-size must be", grpc_request([b"row"] * 1000)),
        _bad_grpc("length that lies", "", grpc_request([half], struct.pack("<I", 2**31) + half)),
        _bad_grpc("more rows than the shape says", "", grpc_request([half], with_length(half) * 2)),
        _bad_grpc("fewer rows than the shape says", "", grpc_request([half, half], with_length(half))),
    ]


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
