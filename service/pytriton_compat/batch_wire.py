"""A batch of requests or responses as one message between Triton's Python stub and a lane of this process.

This file runs on both sides (it is copied beside `stub_model.py`) and therefore imports nothing of the service.

A message is its length (8 bytes, little-endian), then the length of a JSON header (8 bytes), the header, and the
tensors' bytes one after another. It travels by a Unix socket in one direction at a time.
"""

import json
import os
import socket
import struct
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

Tensors = Mapping[str, npt.NDArray[Any]]
# The tensors of one request or response, and what else JSON can say of it.
Entry = tuple[Tensors, Any]
_LENGTH = struct.Struct("<Q")
_MOST_PARTS = os.sysconf("SC_IOV_MAX")  # of one call


def send_batch(connection: socket.socket, batch: Sequence[Entry]) -> None:
    """Send the tensors and details of each request or response.

    Raises:
        OSError: the other side has gone.
    """
    parts: list[bytes] = []
    header = json.dumps([[_describe(tensors, parts), detail] for tensors, detail in batch]).encode()
    size = _LENGTH.size + len(header) + sum(map(len, parts))
    _send(connection, [_LENGTH.pack(size), _LENGTH.pack(len(header)), header, *parts])


def _send(connection: socket.socket, parts: Sequence[bytes]) -> None:
    """Send them one after another, as they are: to copy them into one takes memory, and the GIL all the while.

    A stub that gets little of the processors would seem to stand still.
    """
    left = deque(memoryview(part) for part in parts if part)
    while left:
        sent = connection.sendmsg(islice(left, _MOST_PARTS))
        while left and sent >= len(left[0]):
            sent -= len(left.popleft())
        if sent:
            left[0] = left[0][sent:]


def receive_batch(connection: socket.socket) -> list[Entry] | None:
    """What the other side has sent, strings as views of the message; None when it has closed the connection.

    Raises:
        OSError: the connection broke within a message.
    """
    if (length := _receive(connection, _LENGTH.size)) is None:
        return None
    if (body := _receive(connection, _LENGTH.unpack(length)[0])) is None:
        raise ConnectionResetError("the connection ended before the message did")
    return list(_unpack(body))


def _receive(connection: socket.socket, size: int) -> memoryview | None:
    """So many bytes; None where the connection ends before the first of them."""
    view = np.empty(size, np.uint8).data  # not a bytearray, which is filled with zeros first
    position = 0
    while position < size:
        # All of it in one call, and not in pieces of the socket's buffer: after each the GIL must be had again.
        count = connection.recv_into(view[position:], 0, socket.MSG_WAITALL)
        if not count:
            if position:
                raise ConnectionResetError("the connection ended within a message")
            return None
        position += count
    return view


def _describe(tensors: Tensors, parts: list[bytes]) -> list[Any]:
    """Name, dtype, shape and the lengths of the parts of each tensor, whose bytes are appended to `parts`."""
    described = []
    for name, tensor in tensors.items():
        elements = list(tensor.ravel()) if tensor.dtype == np.object_ else [tensor.tobytes()]
        parts.extend(elements)
        described.append([name, tensor.dtype.str, tensor.shape, [len(element) for element in elements]])
    return described


def _unpack(body: memoryview) -> Iterator[Entry]:
    (length,) = _LENGTH.unpack_from(body)
    position = _LENGTH.size + length
    for described, detail in json.loads(bytes(body[_LENGTH.size : position])):
        tensors = {}
        for name, dtype, shape, sizes in described:
            parts = []
            for size in sizes:
                parts.append(body[position : position + size])
                position += size
            tensors[name] = _tensor(parts, dtype, shape)
        yield tensors, detail


def _tensor(parts: list[memoryview], dtype: str, shape: list[int]) -> npt.NDArray[Any]:
    if dtype != np.dtype(np.object_).str:
        return np.frombuffer(parts[0], dtype=dtype).reshape(shape)
    tensor = np.empty(len(parts), dtype=np.object_)
    for index, part in enumerate(parts):  # all at once they would become numbers
        tensor[index] = part
    return tensor.reshape(shape)
