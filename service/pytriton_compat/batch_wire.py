"""A batch of requests or responses as one message between Triton's Python stub and this process.

It takes the place of PyTriton's tensor store, which keeps each tensor in shared memory that a third process manages, at
the price of several calls to that process an image, and of memory that stays. This file runs on both sides (it is
copied beside `proxy_shim.py`) and therefore imports nothing of the service.

A message is the length of a JSON header (8 bytes, little-endian), the header, and the tensors' bytes one after another.
"""

import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Tensors = Mapping[str, npt.NDArray[Any]]
_LENGTH = struct.Struct("<Q")


class BatchSerializer:
    """What PyTriton asks of a serializer, for either side; requests and responses are built by the given classes."""

    def __init__(self, request: Callable[..., Any], response: Callable[..., Any]) -> None:
        self._request = request
        self._response = response

    def start(self, url: object, authkey: object = None) -> None:
        """Nothing to start: the message travels by PyTriton's own socket."""

    connect = start

    def close(self) -> None:
        """Nothing to close."""

    def serialize_requests(self, requests: Sequence[Any]) -> bytes:
        """PyTriton's requests -> one message."""
        details = [[request.parameters, request.requested_output_names] for request in requests]
        return _pack([request.data for request in requests], details)

    def deserialize_requests(self, message: bytes) -> list[Any]:
        """One message -> PyTriton's requests."""
        return [
            self._request(data=data, parameters=parameters, requested_output_names=names)
            for data, (parameters, names) in _unpack(message)
        ]

    def serialize_responses(self, responses: Sequence[Tensors]) -> bytes:
        """The callable's responses -> one message."""
        return _pack(responses, [None] * len(responses))

    def deserialize_responses(self, message: bytes) -> list[Any]:
        """One message -> PyTriton's responses."""
        return [self._response(data=data) for data, _ in _unpack(message)]

    def free_requests_resources(self, message: bytes) -> None:
        """Nothing to free: the message is all there is."""

    free_responses_resources = free_requests_resources


def _pack(batch: Sequence[Tensors], details: Sequence[Any]) -> bytes:
    parts: list[bytes] = []
    entries = [[_describe(tensors, parts), detail] for tensors, detail in zip(batch, details, strict=True)]
    header = json.dumps(entries).encode()
    return b"".join([_LENGTH.pack(len(header)), header, *parts])


def _describe(tensors: Tensors, parts: list[bytes]) -> list[Any]:
    """Name, dtype, shape and the lengths of the parts of each tensor, whose bytes are appended to `parts`."""
    described = []
    for name, tensor in tensors.items():
        elements = list(tensor.ravel()) if tensor.dtype == np.object_ else [tensor.tobytes()]
        parts.extend(elements)
        described.append([name, tensor.dtype.str, tensor.shape, [len(element) for element in elements]])
    return described


def _unpack(message: bytes) -> Iterator[tuple[dict[str, npt.NDArray[Any]], Any]]:
    (length,) = _LENGTH.unpack_from(message)
    position = _LENGTH.size + length
    for described, detail in json.loads(message[_LENGTH.size : position]):
        tensors = {}
        for name, dtype, shape, lengths in described:
            parts = []
            for size in lengths:
                parts.append(message[position : position + size])
                position += size
            tensors[name] = _tensor(parts, dtype, shape)
        yield tensors, detail


def _tensor(parts: list[bytes], dtype: str, shape: list[int]) -> npt.NDArray[Any]:
    if dtype != np.dtype(np.object_).str:
        return np.frombuffer(parts[0], dtype=dtype).reshape(shape)
    tensor = np.empty(len(parts), dtype=np.object_)
    tensor[:] = parts
    return tensor.reshape(shape)
