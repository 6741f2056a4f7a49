"""Malformed requests: what each is answered with, and that it costs the next request nothing.

The corpus is three tables of what is sent and what comes back. Most of it is refused by Triton's front ends, before any
code of the service runs; rows marked `Triton:` state what Triton does where another answer would be the right one.
"""

import base64
import gzip
import http.client
import json
import socket
import struct
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NamedTuple

import grpc  # type: ignore[import-untyped]
import numpy as np
import psutil
import pytest
import requests
from tritonclient.grpc import service_pb2, service_pb2_grpc

from perf.embeddings import cosines
from service.pytriton_compat.tritonserver import find_library
from service.settings import load_settings
from tests.images import sample
from tests.integration.clients import RAW_HEADERS, embed_raw, post_raw, read_raw_answer
from tests.integration.reference import photographs
from tests.integration.service_process import ServiceProcess, wait_for

INFER = "/v2/models/embed_image/infer"
SIGLIP = "/v2/models/siglip/infer"
IMAGE = sample("one_pixel").data
TEXT = base64.b64encode(IMAGE).decode()
ELEMENT = struct.pack("<I", len(IMAGE)) + IMAGE
SHORT = struct.pack("<I", len(IMAGE) - 1) + IMAGE
BASE64 = {"base64_encoded": True}
PIXELS = np.zeros((1, 3, 64, 64), np.float32)
LONG = "x" * 100_000
PRELOAD = find_library("preload")


class Http(NamedTuple):
    """A request over HTTP, and the answer to it: `status` None is a connection closed without one."""

    name: str
    status: int | None
    message: str  # the beginning of the error; empty for an embedding
    body: bytes
    # Content-Length is added where neither it nor Transfer-Encoding is among them.
    headers: Mapping[str, str] = MappingProxyType({})
    path: str = INFER
    method: str = "POST"
    half_closed: bool = False  # the client says that no more will come


def with_nan(value: float) -> bytes:
    """Pixel values with one that is not a colour."""
    pixels = PIXELS.copy()
    pixels[0, 1, 5, 5] = value
    return pixels.tobytes()


def tensor(**changes: Any) -> dict[str, Any]:
    """A good tensor with fields changed; None leaves one out."""
    fields = {"name": "INPUT_IMAGE", "shape": [1, 1], "datatype": "BYTES", "data": [TEXT], **changes}
    return {name: value for name, value in fields.items() if value is not None}


def request(**changes: Any) -> bytes:
    """A good JSON request with fields of its tensor changed."""
    return whole(inputs=[tensor(**changes)])


def whole(**changes: Any) -> bytes:
    """A good JSON request with other fields changed."""
    return json.dumps({"inputs": [tensor()], "parameters": BASE64, **changes}).encode()


def binary(payload: bytes = ELEMENT, header_length: str = "", **changes: Any) -> dict[str, Any]:
    """Body and headers of a request by the binary tensor extension."""
    size = changes.pop("size", len(payload))
    tensor = {"name": "INPUT_IMAGE", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": size}}
    header = json.dumps({"inputs": [{**tensor, **changes}]}).encode()
    return {"body": header + payload, "headers": {"Inference-Header-Content-Length": header_length or str(len(header))}}


def pixels(payload: bytes = PIXELS.tobytes(), **changes: Any) -> dict[str, Any]:
    """A request to the PIXEL_VALUES model."""
    tensor = {"name": "PIXEL_VALUES", "datatype": "FP32", "shape": [1, 3, 64, 64]}
    return {**binary(payload, **{**tensor, **changes}), "path": SIGLIP}


def nested(depth: int, value: str = "") -> bytes:
    """A value within as many lists."""
    return b"[" * depth + value.encode() + b"]" * depth


def numbers(rows: int) -> bytes:
    """So many rows of pixels."""
    return b"[" + b",".join([b"0"] * rows * PIXELS.size) + b"]"


def chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in (*chunks, b""))


def disagreeing(message: str) -> str:
    """What is said where the lengths of strings do not add up; Triton's own `message` may go to a whole batch."""
    return "invalid_tensor: the strings' lengths do not add up to the tensor's size" if PRELOAD else message


# Of JSON that it cannot read, and of what it is not made for, Triton says by itself that the fault is its own.
BAD, UNKNOWN = (400, 400) if PRELOAD else (500, 501)
# Triton by itself answers, and keeps 80 bytes for good.
ONCE = (400, "invalid_tensor: there is one output, to be asked for once") if PRELOAD else (200, "")
NO_JSON = "failed to parse the request JSON buffer: "
EXCESSIVE = "it is nested over 1000 levels deep, has over 4096 members, or more values than the largest batch"
NO_NUMBER = "attempt to access JSON non-unsigned-integer as unsigned-integer"
PARSE = "Unable to parse "
ID = "[request id: <id_unknown>] "
CHUNKED = {**RAW_HEADERS, "Transfer-Encoding": "chunked"}
NOT_UTF8 = "invalid_parameter: there is no parameter '(not UTF-8)'"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}  # as curl has it by default
GZIP = {**RAW_HEADERS, "Content-Encoding": "gzip"}

HTTP = [
    # Which JSON it cannot read is for the next table.
    Http("no body", 400, "empty_input: ", b""),
    Http("no JSON", BAD, NO_JSON + "Missing a name", b"{nope"),
    Http("JSON cut short", BAD, NO_JSON + "Invalid value", request()[:-5]),
    Http("more behind the JSON", BAD, NO_JSON + "The document root must not be", request() + b"xx"),
    Http("another JSON", BAD, PARSE + "'inputs': ", b"[]"),
    Http("JSON of nothing", BAD, PARSE + "'inputs': ", b"{}"),
    Http("inputs that are no list", BAD, PARSE + "'inputs': ", b'{"inputs":{}}'),
    Http("no inputs", 400, ID + "expected 1 inputs but got 0", b'{"inputs":[]}'),
    Http("inputs that are numbers", 400, "Input must set only one of", b'{"inputs":[1]}'),
    Http("two inputs", 400, ID + "expected 1 inputs but got 2", whole(inputs=[tensor(), tensor(name="X")])),
    Http("UTF-16", BAD, NO_JSON, request().decode().encode("utf-16")),
    Http("invalid UTF-8 in base64", 400, "invalid_base64: ", request(data=["AAAA"]).replace(b"AAAA", b"\xff\xfe\xc3(")),
    Http("invalid UTF-8 in a name", 400, "unexpected inference input", request(name="AA").replace(b"AA", b"\xff\xfe")),
    Http("NaN in a shape", BAD, PARSE + "'shape': " + NO_NUMBER, request(shape=[float("nan"), 1])),
    Http("a huge number", BAD, NO_JSON + "Number too big", request(shape=[10**400, 1])),
    Http("a tensor nested 900 deep", 200, "", request(data="X").replace(b'"X"', nested(900, f'"{TEXT}"'))),
    Http("a photograph as a form", BAD, NO_JSON, b"\xff\xd8" * 2**23, FORM),
    Http("the first of two inputs is empty", 400, ID + "expected 1 inputs", b'{"inputs":[],' + request()[1:]),
    Http("a number as id", BAD, PARSE + "'id'", whole(id=5)),
    # Triton: accepted, though no client should send them.
    Http("nested data", 200, "", request(data=[[[[TEXT]]]])),
    Http("an unknown field", 200, "", whole(unknown=1)),
    Http("the second of two inputs is empty", 200, "", request()[:-1] + b',"inputs":[]}'),
    Http("a byte order mark", 200, "", b"\xef\xbb\xbf" + request()),
    Http("invalid UTF-8 in an id", 200, "", whole(id="AA").replace(b'"AA"', b'"\xff\xfe"')),
    Http("an id of several lines", 200, "", whole(id="a\nTraceback")),
    # The tensor.
    Http("no name", BAD, PARSE + "'name'", request(name=None)),
    Http("a wrong name", 400, "unexpected inference input 'IMAGE'", request(name="IMAGE")),
    Http("a long name", 400, "unexpected inference input 'xxx", request(name=LONG)),
    Http("no shape", BAD, PARSE + "'shape'", request(shape=None)),
    Http("a text as shape", BAD, PARSE + "'shape'", request(shape="1")),
    Http("texts in a shape", BAD, PARSE + "'shape': " + NO_NUMBER, request(shape=["1", "1"])),
    Http("fractions in a shape", BAD, PARSE + "'shape': " + NO_NUMBER, request(shape=[1.0, 1])),
    Http("a negative shape", BAD, PARSE + "'shape': " + NO_NUMBER, request(shape=[-1, 1])),
    Http("a shape over 64 bits", BAD, PARSE + "'shape': " + NO_NUMBER, request(shape=[2**64, 1])),
    Http("a shape of no dimension", 400, ID + "input 'INPUT_IMAGE' has no shape", request(shape=[])),
    Http("a shape of one dimension", 400, ID + "unexpected shape", request(shape=[1])),
    Http("a shape of three dimensions", 400, ID + "unexpected shape", request(shape=[1, 1, 1])),
    Http("a shape of many dimensions", 400, ID + "unexpected shape", request(shape=[1] * 10_000)),
    Http("two columns", 400, ID + "unexpected shape", request(shape=[1, 2], data=[TEXT] * 2)),
    Http("no rows", 400, ID + "expected 1 string elements", request(shape=[0, 1], data=[])),
    Http("too few rows", 400, ID + "expected 2 string elements", request(shape=[2, 1])),
    Http("too many rows", 400, ID + "unexpected number of string", request(data=[TEXT] * 2)),
    Http("rows of 2^31", 400, ID + "expected 2147483648 string", request(shape=[2**31, 1])),
    Http("rows of 2^63 - 1", 400, ID + "expected 4294967295 string", request(shape=[2**63 - 1, 1])),
    Http("rows of 2^32", 400, "invalid_tensor: INPUT_IMAGE must have the shape", request(shape=[2**32, 1])),
    Http("rows of 2^63", 400, "invalid_tensor: INPUT_IMAGE must have the shape", request(shape=[2**63, 1])),
    Http("Triton: rows of 2^32 + 1 are one", 200, "", request(shape=[2**32 + 1, 1])),
    Http("61 rows", 400, ID + "inference request batch-size must be <= 60", request(shape=[61, 1], data=[TEXT] * 61)),
    Http("no datatype", BAD, PARSE + "'datatype'", request(datatype=None)),
    Http("an unknown datatype", 400, "invalid datatype for input", request(datatype="IMAGE")),
    Http("a datatype in small letters", 400, "invalid datatype for input", request(datatype="bytes")),
    Http("another datatype", 400, ID + "inference input 'INPUT_IMAGE' data-type is 'FP32'",
         request(datatype="FP32", data=[1.0])),
    Http("texts of another datatype", BAD, PARSE + "'data'", request(datatype="FP32")),
    Http("no data", 400, "Input must set only one of", request(data=None)),
    Http("a text as data", BAD, PARSE + "'data'", request(data=TEXT)),
    Http("numbers as images", BAD, PARSE + "JSON bytes array", request(data=[1])),
    Http("null as image", BAD, PARSE + "JSON bytes array", request(data=[None])),
    Http("an empty image", 400, "empty_input: ", request(data=[""])),
    Http("no base64", 400, "invalid_base64: ", request(data=["no base64!"])),
    Http("base64 with line breaks", 400, "invalid_base64: ", request(data=[TEXT[:40] + "\n" + TEXT[40:]])),
    Http("base64 in a data URI", 400, "invalid_base64: the row starts with a data:",
         request(data=["data:image/png;base64," + TEXT])),
    Http("one bad row of three", 400, "unsupported_format: row 1: ", request(shape=[3, 1], data=[TEXT, "AAAA", TEXT])),
    Http("a row cut short", 400, "corrupt_image: row 2: ",
         request(shape=[3, 1], data=[TEXT, TEXT, base64.b64encode(IMAGE[:-30]).decode()])),
    # Parameters and outputs.
    Http("parameters that are null", BAD, "failed to get request params", whole(parameters=None)),
    Http("a list as parameter", 400, "parameter 'base64_encoded' has", whole(parameters={"base64_encoded": [1]})),
    Http("another model's name", 400, "unknown_model: there is no model 'clip'; served: siglip",
         whole(parameters={"embed_model": "clip"})),
    Http("a wrong parameter", 400, "invalid_parameter: there is no parameter 'base'", whole(parameters={"base": True})),
    Http("a text as bool", 400, "invalid_parameter: base64_encoded ", whole(parameters={"base64_encoded": "true"})),
    Http("a word as bool", 400, "invalid_parameter: normalize ", whole(parameters={**BASE64, "normalize": "yes"})),
    Http("a number as bool", 400, "invalid_parameter: base64_encoded ", whole(parameters={"base64_encoded": 1})),
    Http("a fraction as bool", 400, "invalid_parameter: base64_encoded ", whole(parameters={"base64_encoded": 1.5})),
    Http("2^63 as bool", 400, "invalid_parameter: base64_encoded ", whole(parameters={"base64_encoded": 2**63})),
    Http("an empty name", 400, "invalid_parameter: there is no parameter ''", whole(parameters={"": True})),
    Http("a long name", 400, "invalid_parameter: there is no parameter 'xxx", whole(parameters={LONG: True})),
    Http("invalid UTF-8 as a name", 400, NOT_UTF8, whole(parameters={"AA": True}).replace(b"AA", b"\xff\xfe")),
    Http("invalid UTF-8 as a value", 400, NOT_UTF8, whole(parameters={"embed_model": "AA"}).replace(b"AA", b"\xff")),
    Http("a line break", 400, r"invalid_parameter: there is no parameter 'a\nb'", whole(parameters={"a\nb": True})),
    Http("a zero", BAD, "parameter key 'a' was not found", whole(parameters={"a\0b": True})),
    Http("a reserved name", 400, "parameter keys starting with 'triton_'", whole(parameters={"triton_x": True})),
    Http("a negative timeout", BAD, PARSE + "'timeout': " + NO_NUMBER, whole(parameters={"timeout": -1})),
    Http("a negative priority", BAD, PARSE + "'priority': " + NO_NUMBER, whole(parameters={"priority": -1})),
    Http("a negative sequence", BAD, PARSE + "'sequence_id'", whole(parameters={"sequence_id": -1})),
    Http("a long sequence", UNKNOWN, "string correlation ID cannot be", whole(parameters={"sequence_id": "x" * 129})),
    Http("binary output as text", BAD, PARSE + "'binary_data_output'", whole(parameters={"binary_data_output": "x"})),
    Http("the first of two values counts", 400, "unsupported_format: ",
         request().replace(b": true", b': false, "base64_encoded": true')),
    Http("Triton: sequence and priority mean nothing", 200, "",
         whole(parameters={**BASE64, "sequence_id": 7, "sequence_start": True, "priority": 1, "timeout": 60_000_000})),
    Http("an unknown output", 400, "unexpected inference output 'X'", whole(outputs=[{"name": "X"}])),
    Http("an output twice", *ONCE, whole(outputs=[{"name": "EMBEDDING"}] * 2)),
    Http("an output without name", BAD, PARSE + "'name'", whole(outputs=[{}])),
    Http("outputs that are null", BAD, PARSE + "'outputs'", whole(outputs=None)),
    Http("a negative classification", BAD, "Unable to set 'classification'",
         whole(outputs=[{"name": "EMBEDDING", "parameters": {"classification": -3}}])),
    Http("an output to shared memory", 404, "Unable to find shared memory region",
         whole(outputs=[{"name": "EMBEDDING", "parameters":
                         {"shared_memory_region": "x", "shared_memory_byte_size": 512}}])),
    Http("an input from shared memory", 404, "Unable to find shared memory region",
         request(data=None, parameters={"shared_memory_region": "x", "shared_memory_byte_size": 10})),
    Http("shared memory and data", 400, "Input must set only one of",
         request(parameters={"shared_memory_region": "x", "shared_memory_byte_size": 10})),
    # The binary tensor extension.
    Http("a length too small", 400, disagreeing(ID + "incomplete string length"), **binary(SHORT)),
    Http("a length too large", 400, disagreeing("incomplete string data"),
         **binary(struct.pack("<I", len(IMAGE) + 1) + IMAGE)),
    Http("the largest length", 400, disagreeing("incomplete string data"), **binary(b"\xff" * 4 + IMAGE)),
    Http("a length alone", 400, "empty_input: ", **binary(bytes(4))),
    Http("half a length", 400, disagreeing(ID + "incomplete string length"), **binary(b"\1\0")),
    Http("bytes behind", 400, disagreeing(ID + "incomplete string length"), **binary(ELEMENT + b"xx")),
    Http("two elements for one row", 400, ID + "unexpected number of string", **binary(ELEMENT * 2)),
    Http("a size too small", 400, "unexpected additional input data", **binary(size=10)),
    Http("a size too large", 400, "unexpected size for input", **binary(size=10**9)),
    Http("a size of 2^64 - 1", 400, "unexpected size for input", **binary(size=2**64 - 1)),
    Http("a negative size", BAD, PARSE + "'binary_data_size': " + NO_NUMBER, **binary(size=-1)),
    Http("a text as size", BAD, PARSE + "'binary_data_size': " + NO_NUMBER, **binary(size="10")),
    Http("a header too long", 400, "inference header size should be in range", **binary(header_length="999999999")),
    Http("a negative header", 400, "inference header size should be in range", **binary(header_length="-1")),
    Http("a header over 64 bits", 400, "inference header size should be in range", **binary(header_length="9" * 20)),
    Http("half a header", BAD, NO_JSON, **binary(header_length="5")),
    Http("Triton: a text as header length is 0", 400, "unsupported_format: ", **binary(header_length="abc")),
    Http("raw without its header", BAD, NO_JSON, IMAGE, {"Content-Type": "application/octet-stream"}),
    Http("raw without an image", 400, "empty_input: ", b"", RAW_HEADERS),
    # Prepared pixels.
    Http("pixels with NaN", 400, "invalid_tensor: PIXEL_VALUES must be finite", **pixels(with_nan(np.nan))),
    Http("pixels with infinity", 400, "invalid_tensor: PIXEL_VALUES must be finite", **pixels(with_nan(-np.inf))),
    Http("pixels of 4 bytes too few", 400, ID + "input byte size mismatch", **pixels(PIXELS.tobytes()[4:])),
    Http("no pixels", 400, ID + "input byte size mismatch", **pixels(b"")),
    Http("pixels of 2 rows in 1", 400, ID + "input byte size mismatch", **pixels(shape=[2, 3, 64, 64])),
    Http("pixels of no rows", 400, ID + "input byte size mismatch", **pixels(b"", shape=[0, 3, 64, 64])),
    Http("pixels of 2^32 rows", 400, "invalid_tensor: ", **pixels(shape=[2**32, 3, 64, 64])),
    Http("pixels of 2^62 rows", 400, "invalid_tensor: ", **pixels(shape=[2**62, 3, 64, 64])),
    Http("pixels with channels last", 400, ID + "unexpected shape", **pixels(shape=[1, 64, 64, 3])),
    Http("pixels of the largest batch as numbers", 200, "",
         request(name="PIXEL_VALUES", datatype="FP32", shape=[60, 3, 64, 64], data="X").replace(b'"X"', numbers(60)),
         path=SIGLIP),
    Http("pixels in half precision", 400, ID + "inference input", **pixels(bytes(24576), datatype="FP16")),
    Http("an image as pixels", 400, ID + "input byte size mismatch", IMAGE, RAW_HEADERS, SIGLIP),
    # Encodings.
    Http("gzip", 200, "", gzip.compress(IMAGE), GZIP),
    Http("deflate", 200, "", zlib.compress(IMAGE), {**RAW_HEADERS, "Content-Encoding": "deflate"}),
    Http("gzip of nothing", 400, "nothing to be decompressed", b"", GZIP),
    Http("gzip that says nothing", 400, "unsupported_format: ", gzip.compress(IMAGE), RAW_HEADERS),
    Http("gzip twice", 400, "unsupported_format: ", gzip.compress(gzip.compress(IMAGE)), GZIP),
    Http("Triton: plain as gzip is empty", 400, "empty_input: ", IMAGE, GZIP),
    Http("Triton: gzip cut short is a part", 400, "corrupt_image: ", gzip.compress(IMAGE)[:-30], GZIP),
    Http("Triton: a wrong checksum of gzip", 200, "", gzip.compress(IMAGE)[:-8] + bytes(8), GZIP),
    Http("brotli", UNKNOWN, "Unsupported compression type", IMAGE, {**RAW_HEADERS, "Content-Encoding": "br"}),
    Http("two encodings", UNKNOWN, "Unsupported compression", IMAGE, {**RAW_HEADERS, "Content-Encoding": "gzip, gzip"}),
    Http("a media type of its own", 200, "", request(), {"Content-Type": "text/xml"}),
    Http("multipart", BAD, NO_JSON, IMAGE, {"Content-Type": "multipart/form-data; boundary=x"}),
    # Lengths of the body.
    Http("chunked", 200, "", chunked(IMAGE), CHUNKED),
    Http("a chunk of no number", None, "", b"zz\r\nabc\r\n0\r\n\r\n", CHUNKED),
    Http("a negative chunk", None, "", b"-1\r\nabc\r\n0\r\n\r\n", CHUNKED),
    Http("no last chunk", None, "", chunked(IMAGE)[:-5], CHUNKED, half_closed=True),
    Http("a length too large", None, "", IMAGE, {**RAW_HEADERS, "Content-Length": "99999"}, half_closed=True),
    Http("a negative length", None, "", IMAGE, {**RAW_HEADERS, "Content-Length": "-1"}),
    Http("a length over 64 bits", None, "", IMAGE, {**RAW_HEADERS, "Content-Length": "9" * 20}),
    Http("a length too small", 400, "corrupt_image: ", IMAGE, {**RAW_HEADERS, "Content-Length": "30"}),
    Http("Triton: no length is an empty body", 400, "empty_input: ", IMAGE, {**RAW_HEADERS, "Content-Length": ""}),
    Http("a header of 100 KB", None, "", IMAGE, {**RAW_HEADERS, "X": LONG}),
    # Methods and paths.
    *(Http(method, 405, "Method Not Allowed", b"", method=method) for method in ("GET", "PUT", "DELETE", "BREW")),
    Http("another model", 404, "Request for unknown model: 'nope'", request(), path="/v2/models/nope/infer"),
    Http("another version", 404, "Request for unknown", request(), path="/v2/models/embed_image/versions/2/infer"),
    Http("a version of 20 digits", 400, "failed to get model version", request(),
         path=f"/v2/models/embed_image/versions/{'9' * 20}/infer"),
    Http("a version of letters", 404, "Not Found", request(), path="/v2/models/embed_image/versions/abc/infer"),
    Http("a path upwards", 404, "Request for unknown model: '..'", request(), path="/v2/models/../infer"),
    Http("a zero in a path", 404, "Request for unknown model", request(), path="/v2/models/embed_image%00/infer"),
    Http("no path", 404, "Not Found", request(), path="/"),
    Http("the generate extension", 400, "parameter 'inputs' has invalid type", request(),
         path="/v2/models/embed_image/generate"),
    *(
        Http(path, 403, "This API is restricted", b"{}", path=f"/v2/{path}")
        for path in (
            "repository/index", "repository/models/embed_image/unload", "systemsharedmemory/region/x/register",
            "cudasharedmemory/status", "trace/setting", "logging",
        )
    ),
]  # fmt: skip

# What would end tritonserver by itself.
DEADLY = [
    Http("a tensor nested deeply", 400, NO_JSON + EXCESSIVE, request(data="X").replace(b'"X"', nested(2_000_000))),
    Http("objects nested deeply", 400, NO_JSON, b'{"a":' * 2_000_000 + b"1" + b"}" * 2_000_000),
    Http("strings and a long list before it", 400, NO_JSON,
         b' {"a\\"":["\\\\","[",{},[]' + b",0" * 500_000 + b'],"b":' + nested(2_000_000) + b"}"),
    Http("nested deeply by the generate extension", 400, NO_JSON, nested(2_000_000),
         path="/v2/models/embed_image/generate"),
    Http("far more numbers than the largest batch has", 400, NO_JSON + EXCESSIVE,
         request(data="X").replace(b'"X"', numbers(70))),
    Http("members that are looked for in all the others", 400, NO_JSON + EXCESSIVE,
         whole(parameters={str(number): True for number in range(4096)})),
    Http("inputs whose names are told again and again", 400, "invalid_tensor: there is one input",
         whole(inputs=[tensor(name=str(number)) for number in range(3)])),
    Http("2^40 numbers", 400, "invalid_tensor: ", request(datatype="FP32", shape=[2**40, 1], data=[])),
    Http("2^62 + 1 numbers, whose size is four", 400, "invalid_tensor: ",
         request(datatype="FP32", shape=[2**62 + 1, 1], data=[1.5] * 100_000)),
    Http("-1 numbers", 400, "invalid_tensor: ", request(datatype="FP32", shape=[2**64 - 1, 1], data=[])),
    Http("a weight that no number holds", 200, "", IMAGE, {**RAW_HEADERS, "Accept-Encoding": "gzip;q=1e999"}),
    Http("a length beside chunks", 200, "", chunked(request()),
         {"Content-Length": str(2**32 - 1), "Transfer-Encoding": "chunked"}),
]  # fmt: skip


def grpc_request(shape: tuple[int, ...] = (1, 1), **changes: Any) -> Any:
    """A good gRPC request with some of it changed."""
    message = service_pb2.ModelInferRequest(
        model_name=changes.get("model", "embed_image"), model_version=changes.get("version", "")
    )
    tensor = message.inputs.add()
    tensor.name, tensor.datatype = changes.get("name", "INPUT_IMAGE"), changes.get("datatype", "BYTES")
    tensor.shape.extend(shape)
    for kind, values in changes.get("contents", {}).items():
        getattr(tensor.contents, kind).extend(values)
    for name, (kind, value) in changes.get("parameters", {}).items():
        setattr(message.parameters[name], kind, value)
    for name in changes.get("outputs", ()):
        message.outputs.add().name = name
    message.raw_input_contents.extend(changes.get("raw", (ELEMENT,)))
    return message


def grpc_pixels(raw: bytes = PIXELS.tobytes(), shape: tuple[int, ...] = (1, 3, 64, 64)) -> Any:
    return grpc_request(shape, raw=(raw,), name="PIXEL_VALUES", datatype="FP32", model="siglip")


BYTES_AND_FLOATS = {"bytes_contents": [IMAGE], "fp32_contents": [1.0]}

GRPC = [
    ("nothing at all", "NOT_FOUND", "Request for unknown model: ''", service_pb2.ModelInferRequest()),
    ("no inputs", "INVALID_ARGUMENT", ID + "expected 1 inputs but got 0",
     service_pb2.ModelInferRequest(model_name="embed_image", raw_input_contents=[ELEMENT])),
    ("another model", "NOT_FOUND", "Request for unknown model: 'nope'", grpc_request(model="nope")),
    ("another version", "NOT_FOUND", "Request for unknown model", grpc_request(version="2")),
    ("a version of letters", "INVALID_ARGUMENT", "failed to get model version", grpc_request(version="abc")),
    ("a negative version", "INVALID_ARGUMENT", "invalid model version", grpc_request(version="-1")),
    ("a wrong name", "INVALID_ARGUMENT", "unexpected inference input 'X'", grpc_request(name="X")),
    ("a wrong datatype", "INVALID_ARGUMENT", ID + "inference input", grpc_request(datatype="FP32")),
    ("no datatype", "INVALID_ARGUMENT", ID + "inference input", grpc_request(datatype="")),
    ("an unknown output", "INVALID_ARGUMENT", "unexpected inference output 'X'", grpc_request(outputs=["X"])),
    ("outputs twice", "INVALID_ARGUMENT" if PRELOAD else "OK", ONCE[1], grpc_request(outputs=["EMBEDDING"] * 2)),
    ("no contents", "INVALID_ARGUMENT", "unable to find data for input tensor", grpc_request(raw=())),
    ("both contents", "INVALID_ARGUMENT", "contents field must not be specified when using raw_input_contents",
     grpc_request(contents={"bytes_contents": [IMAGE]})),
    ("contents", "OK", "", grpc_request(raw=(), contents={"bytes_contents": [IMAGE]})),
    ("contents of another type", "INVALID_ARGUMENT", "unexpected explicit tensor data",
     grpc_request(raw=(), contents={"fp32_contents": [1.0]})),
    ("contents of two types", "INVALID_ARGUMENT", "unexpected explicit tensor data",
     grpc_request(raw=(), contents=BYTES_AND_FLOATS)),
    ("contents of two rows in one", "INVALID_ARGUMENT", ID + "unexpected number of string elements",
     grpc_request(raw=(), contents={"bytes_contents": [IMAGE] * 2})),
    ("Triton: the second of two raw contents is forgotten", "OK", "", grpc_request(raw=(ELEMENT, b"more"))),
    ("empty raw contents", "INVALID_ARGUMENT", ID + "expected 1 string elements", grpc_request(raw=(b"",))),
    ("half a length", "INVALID_ARGUMENT", disagreeing(ID + "incomplete string length"), grpc_request(raw=(b"abc",))),
    ("an image without its length", "INVALID_ARGUMENT", disagreeing("incomplete string data"),
     grpc_request(raw=(IMAGE,))),
    ("a length too large", "INVALID_ARGUMENT", disagreeing("incomplete string data"),
     grpc_request(raw=(b"\xff" * 4 + IMAGE,))),
    ("a length too small", "INVALID_ARGUMENT", disagreeing(ID + "incomplete string"), grpc_request(raw=(SHORT,))),
    ("a length of nothing", "INVALID_ARGUMENT", "empty_input: ", grpc_request(raw=(bytes(4),))),
    ("bytes behind", "INVALID_ARGUMENT", disagreeing(ID + "incomplete string length"),
     grpc_request(raw=(ELEMENT + b"xx",))),
    ("no dimensions", "INVALID_ARGUMENT", ID + "input 'INPUT_IMAGE' has no shape", grpc_request(())),
    ("one dimension", "INVALID_ARGUMENT", ID + "unexpected shape", grpc_request((1,))),
    ("negative rows", "INVALID_ARGUMENT", ID + "expected 4294967295 string elements", grpc_request((-1, 1))),
    ("negative columns", "INVALID_ARGUMENT", ID + "All input dimensions should be", grpc_request((1, -1))),
    ("no rows", "INVALID_ARGUMENT", "invalid_tensor: ", grpc_request((0, 1))),
    ("too few rows", "INVALID_ARGUMENT", ID + "expected 2 string elements", grpc_request((2, 1))),
    ("61 rows", "INVALID_ARGUMENT", ID + "inference request batch-size", grpc_request((61, 1), raw=(ELEMENT * 61,))),
    ("2^32 rows", "INVALID_ARGUMENT", "invalid_tensor: ", grpc_request((2**32, 1))),
    ("-2^63 rows", "INVALID_ARGUMENT", "invalid_tensor: ", grpc_request((-(2**63), 1))),
    ("Triton: 2^32 + 1 rows are one", "OK", "", grpc_request((2**32 + 1, 1))),
    ("a text as bool", "INVALID_ARGUMENT", "invalid_parameter: base64_encoded ",
     grpc_request(parameters={"base64_encoded": ("string_param", "true")})),
    ("a NaN as bool", "INVALID_ARGUMENT", "invalid_parameter: normalize ",
     grpc_request(parameters={"normalize": ("double_param", float("nan"))})),
    ("an unsigned number", "INVALID_ARGUMENT", "invalid value type for 'x' parameter",
     grpc_request(parameters={"x": ("uint64_param", 2**64 - 1)})),
    ("an unknown parameter", "INVALID_ARGUMENT", "invalid_parameter: there is no parameter 'binary_data_output'",
     grpc_request(parameters={"binary_data_output": ("bool_param", True)})),
    ("a reserved parameter", "INVALID_ARGUMENT", "parameter keys starting with 'triton_'",
     grpc_request(parameters={"triton_x": ("bool_param", True)})),
    ("a negative priority", "INVALID_ARGUMENT", "invalid value for 'priority'",
     grpc_request(parameters={"priority": ("int64_param", -1)})),
    ("Triton: a negative timeout means nothing", "OK", "", grpc_request(parameters={"timeout": ("int64_param", -1)})),
    ("pixels with NaN", "INVALID_ARGUMENT", "invalid_tensor: PIXEL_VALUES must be fin", grpc_pixels(with_nan(np.nan))),
    ("pixels of a byte too few", "INVALID_ARGUMENT", ID + "input byte size mismatch", grpc_pixels(bytes(49151))),
    ("pixels of the largest batch", "OK", "", grpc_pixels(bytes(60 * PIXELS.nbytes), (60, 3, 64, 64))),
    ("pixels of 2^40 rows", "INVALID_ARGUMENT", "invalid_tensor: ", grpc_pixels(shape=(2**40, 3, 64, 64))),
    ("pixels of negative rows", "INVALID_ARGUMENT", "", grpc_pixels(shape=(-1, 3, 64, 64))),
    ("pixels of negative sides", "INVALID_ARGUMENT", "", grpc_pixels(shape=(1, 3, -64, -64))),
    # Triton: bytes that are no message are its own fault.
    ("no message", "INTERNAL", "Unable to parse request", b"\xff\xff\xff\xff"),
    ("a message cut short", "INTERNAL", "Unable to parse request", grpc_request().SerializeToString()[:-10]),
    ("a length that lies", "INTERNAL", "Unable to parse request", b"\x0a\xff\xff\xff\xff\x0f"),
]  # fmt: skip


@pytest.fixture(scope="module")
def unharmed(running: ServiceProcess) -> Iterator[ServiceProcess]:
    """The service, which is the same ready one afterwards, and has nothing to tell of what was done to it."""
    family, read = running.family(), len(running.output())
    yield running
    assert running.family() == family and psutil.STATUS_ZOMBIE not in {process.status() for process in family}
    assert running.is_ready()
    assert "Traceback" not in running.output()[read:]


@pytest.fixture(scope="module")
def alone(unharmed: ServiceProcess) -> np.ndarray[Any, Any]:
    """The embedding of the good image."""
    return read_raw_answer(post_raw(unharmed, IMAGE))


def ask(service: ServiceProcess, case: Http) -> tuple[int | None, str]:
    """Status and error message of the answer."""
    headers = {"Host": "test", **case.headers}
    if not {"Content-Length", "Transfer-Encoding"} & set(headers):
        headers["Content-Length"] = str(len(case.body))
    lines = [f"{case.method} {case.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    with socket.create_connection(("127.0.0.1", service.http_port), timeout=60) as connection:
        try:
            connection.sendall("\r\n".join([*lines, "", ""]).encode() + case.body)
            if case.half_closed:
                connection.shutdown(socket.SHUT_WR)
            response = http.client.HTTPResponse(connection, method=case.method)
            response.begin()
        except (ConnectionError, http.client.RemoteDisconnected):
            return None, ""
        content = response.read().decode(errors="replace")
    return response.status, "" if response.status == 200 else json.loads(content)["error"]


@pytest.mark.parametrize("case", HTTP, ids=[case.name for case in HTTP])
def test_http(unharmed: ServiceProcess, alone: np.ndarray[Any, Any], case: Http) -> None:
    status, message = ask(unharmed, case)
    assert (status, message[: len(case.message)]) == (case.status, case.message), message[:500]
    assert "Traceback" not in message and "\n" not in message
    np.testing.assert_array_equal(read_raw_answer(post_raw(unharmed, IMAGE)), alone)


@pytest.mark.skipif(PRELOAD is None, reason="setup has found no C compiler")
@pytest.mark.parametrize("case", DEADLY, ids=[case.name for case in DEADLY])
def test_what_would_end_tritonserver_is_refused(unharmed: ServiceProcess, case: Http) -> None:
    family = unharmed.family()
    status, message = ask(unharmed, case)
    assert (status, message[: len(case.message)]) == (case.status, case.message), message[:500]
    assert unharmed.family() == family


@pytest.fixture(scope="module")
def channel(unharmed: ServiceProcess) -> Iterator[grpc.Channel]:
    """A connection that sends messages of any size."""
    address, options = f"127.0.0.1:{unharmed.grpc_port}", [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(address, options) as channel:
        yield channel


def ask_grpc(
    channel: grpc.Channel, message: Any, compression: grpc.Compression = grpc.Compression.NoCompression
) -> tuple[str, str, bytes]:
    """Status, error message and first output of the answer to a message or to the bytes of one."""
    call = channel.unary_unary(
        "/inference.GRPCInferenceService/ModelInfer",
        request_serializer=lambda each: each if isinstance(each, bytes) else each.SerializeToString(),
        response_deserializer=service_pb2.ModelInferResponse.FromString,
    )
    try:
        return "OK", "", call(message, timeout=60, compression=compression).raw_output_contents[0]
    except grpc.RpcError as error:
        return error.code().name, error.details() or "", b""


@pytest.mark.parametrize(("status", "expected", "message"), [case[1:] for case in GRPC], ids=[case[0] for case in GRPC])
def test_grpc(channel: grpc.Channel, alone: np.ndarray[Any, Any], status: str, expected: str, message: Any) -> None:
    answered, details, _ = ask_grpc(channel, message)
    assert (answered, details[: len(expected)]) == (status, expected), details[:500]
    assert ask_grpc(channel, grpc_request())[2] == alone.tobytes()


def test_a_grpc_stream_goes_on_after_each_bad_request(channel: grpc.Channel) -> None:
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    bad = [grpc_request((2**32, 1)), grpc_request(model="nope"), grpc_request(raw=(IMAGE[:2],)), grpc_request(name="X")]
    requests = [each for pair in zip(bad, [grpc_request()] * len(bad), strict=True) for each in pair]
    answers = list(stub.ModelStreamInfer(iter(requests), timeout=60))
    assert sorted(bool(answer.error_message) for answer in answers) == [False] * 4 + [True] * 4


def test_calls_that_are_over_when_they_are_refused_are_forgotten(unharmed: ServiceProcess) -> None:
    """Many of them would keep their messages, of 1 MiB each."""
    tritonserver = unharmed.part("bin/tritonserver")
    before, message = tritonserver.memory_info().rss, grpc_request(name="X", raw=(bytes(2**20),)).SerializeToString()
    with grpc.insecure_channel(f"127.0.0.1:{unharmed.grpc_port}") as channel, ThreadPoolExecutor(8) as threads:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        seconds = [(number % 20 + 1) / 1000 for number in range(1000)]
        outcomes = set(threads.map(lambda timeout: call.future(message, timeout).code().name, seconds))
    assert outcomes <= {"DEADLINE_EXCEEDED", "INVALID_ARGUMENT"}
    wait_for(lambda: tritonserver.memory_info().rss - before < 50 * 2**20, seconds=60)


@pytest.mark.skipif(PRELOAD is None, reason="setup has found no C compiler")
def test_a_lie_about_a_length_fails_alone(unharmed: ServiceProcess, channel: grpc.Channel) -> None:
    """Every third of 300 requests announces more bytes than it has, over gRPC and as binary tensor data over HTTP."""
    rows = b"".join(struct.pack("<I", len(image)) + image for image in photographs())
    lies = (b"\xff\xff\xff\xff" + photographs()[0], struct.pack("<I", 1) + b"x" + struct.pack("<I", 9) + b"eight...")

    def send(number: int) -> tuple[bool, str, str]:
        lie = number % 3 == 0
        raw, shape = (lies[number % 2], (number % 2 + 1, 1)) if lie else (rows, (len(photographs()), 1))
        if number % 4 < 2:
            code, message, _ = ask_grpc(channel, grpc_request(shape, raw=(raw,)))
        else:
            status, message = ask(unharmed, Http("", None, "", **binary(raw, shape=shape)))
            code = {200: "OK", 400: "INVALID_ARGUMENT"}.get(status or 0, str(status))
        return lie, code, message.partition(",")[0]

    with ThreadPoolExecutor(32) as threads:
        outcomes = Counter(threads.map(send, range(300)))
    assert outcomes == {(True, "INVALID_ARGUMENT", disagreeing("")): 100, (False, "OK", ""): 200}


@pytest.mark.skipif(PRELOAD is None, reason="setup has found no C compiler")
@pytest.mark.parametrize("begun", [1, 2, 3])
def test_a_length_may_be_in_two_pieces(unharmed: ServiceProcess, begun: int) -> None:
    """A body is taken in the pieces in which it comes, here in chunks: each image gets its own embedding."""
    images = photographs()
    elements = [struct.pack("<I", len(image)) + image for image in images]
    rows = binary(b"".join(elements), shape=[len(images), 1])
    header = rows["body"][: int(rows["headers"]["Inference-Header-Content-Length"])]
    chunks = [before[begun:] + element[:begun] for before, element in pairwise([bytes(begun) + header, *elements])]
    response = requests.post(
        unharmed.infer_url, iter([*chunks, elements[-1][begun:]]), headers=rows["headers"], timeout=60
    )
    assert response.status_code == 200, response.text
    (output,) = response.json()["outputs"]
    embeddings = np.array(output["data"], np.float32).reshape(output["shape"])
    assert cosines(embeddings, embed_raw(unharmed, images)).min() > 0.99999


@pytest.mark.skipif(PRELOAD is None, reason="setup has found no C compiler")
def test_no_body_is_read_as_a_form(unharmed: ServiceProcess) -> None:
    """Triton's HTTP parser would make 5 GB of these fields, and end."""
    fields = b"a=b&" * (20 * 2**20)
    status, message = ask(unharmed, Http("fields", 400, "", fields, {**RAW_HEADERS, **FORM}))
    assert (status, message.partition(":")[0]) == (400, "too_many_bytes")


@pytest.mark.skipif(PRELOAD is None, reason="setup has found no C compiler")
def test_what_comes_compressed_does_not_become_large_out_of_nothing(
    unharmed: ServiceProcess, channel: grpc.Channel
) -> None:
    zeros = bytes(2**27)
    status, message = ask(unharmed, Http("a bomb", 400, "", gzip.compress(zeros, 1), GZIP))
    assert status == 400 and 2**26 < int(message.removeprefix("too_many_bytes: the image has ").split()[0]) < 2**27
    code, message, _ = ask_grpc(channel, grpc_request(raw=(zeros,)), grpc.Compression.Gzip)
    assert (code, message.split(" for")[0]) == ("INTERNAL", "Unexpected error decompressing data")


@pytest.mark.skipif(PRELOAD is None, reason="setup has found no C compiler")
@pytest.mark.parametrize("header_length", ["5", "-1"])
def test_what_comes_compressed_is_freed_where_its_request_is_refused(
    unharmed: ServiceProcess, header_length: str
) -> None:
    tritonserver, body = unharmed.part("bin/tritonserver"), gzip.compress(b"{nope" + bytes(2**25), 1)
    headers = {"Content-Encoding": "gzip", "Inference-Header-Content-Length": header_length}
    before = tritonserver.memory_info().rss
    for _ in range(20):
        status, _ = ask(unharmed, Http("compressed", 400, "", body, headers))
        assert status == 400
    assert tritonserver.memory_info().rss - before < 10 * 2**25


LONG_TEXTS: dict[str, dict[str, Any]] = {
    "id": {"id": "x" * 2**20 + "x"},
    "value": {"parameters": {"embed_model": "x" * 2**20}},
    "name": {"parameters": {"x" * 2**20 + "x": True}},
    "many": {"parameters": {str(number): True for number in range(1024)}},
    "sum": {"id": "x" * 2**19, "parameters": {"x" * 2**19: 1, "y": 0.5}},
}


@pytest.mark.skipif(PRELOAD is None, reason="setup has found no C compiler")
@pytest.mark.parametrize("name", LONG_TEXTS)
def test_long_texts_that_would_go_along_with_an_image_are_refused(
    unharmed: ServiceProcess, channel: grpc.Channel, name: str
) -> None:
    """A few of 100 MB would hold up a lane for so long that others lose their answers."""
    refusal = "invalid_parameter: there are a thousand parameters, or over 1 MiB of text in them and the id"
    assert ask(unharmed, Http(name, 400, refusal, whole(**LONG_TEXTS[name]))) == (400, refusal)
    kinds = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
    parameters = {key: (kinds[type(value)], value) for key, value in LONG_TEXTS[name].get("parameters", {}).items()}
    message = grpc_request(parameters=parameters)
    message.id = LONG_TEXTS[name].get("id", "")
    assert ask_grpc(channel, message)[:2] == ("INVALID_ARGUMENT", refusal)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_200_mb_are_refused(
    unharmed: ServiceProcess, channel: grpc.Channel, alone: np.ndarray[Any, Any], protocol: str
) -> None:
    """Triton reads them all: it is the proxy in front that refuses them at once."""
    image, limit = bytes(200 * 2**20), "too_many_bytes: the image has 209715200 bytes"
    if protocol == "http":
        status, message = ask(unharmed, Http("200 MB", 400, limit, image, RAW_HEADERS))
        assert status == 400 and message.startswith(limit)
    else:
        code, message, _ = ask_grpc(channel, grpc_request(raw=(struct.pack("<I", len(image)) + image,)))
        assert code == "INVALID_ARGUMENT" and message.startswith(limit)
    np.testing.assert_array_equal(read_raw_answer(post_raw(unharmed, IMAGE)), alone)


def test_what_triton_prints_holds_nobody_up(unharmed: ServiceProcess, alone: np.ndarray[Any, Any]) -> None:
    """It prints a line for each of several requests that are sent at once: here 4 MB, far more than a pipe holds."""
    family, several = unharmed.family(), b"GET /v2/health/live HTTP/1.1\r\n\r\n" * 10

    def send_and_leave(_: int) -> None:
        with socket.create_connection(("127.0.0.1", unharmed.http_port), timeout=60) as connection:
            connection.sendall(several)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(send_and_leave, range(3000)))
    np.testing.assert_array_equal(read_raw_answer(post_raw(unharmed, IMAGE)), alone)
    assert unharmed.family() == family


def test_the_shared_memory_of_each_stub_is_limited(running: ServiceProcess) -> None:
    stubs = [process for process in running.family() if "stub" in process.name()]
    settings = load_settings([])
    largest_batch = settings.max_batch_size * settings.max_image_bytes * 4 // 3
    (limit,) = {process.rlimit(psutil.RLIMIT_FSIZE)[1] for process in stubs}
    assert largest_batch < limit < largest_batch + 2**30


def test_tritons_processes_keep_few_heaps_and_no_large_bodies_in_them(running: ServiceProcess) -> None:
    """What that saves takes minutes of load to show: see `python -m perf soak`."""
    for process in running.family()[1:]:
        heaps = {name: value for name, value in process.environ().items() if name.startswith("MALLOC_")}
        assert heaps == {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": "131072"}
