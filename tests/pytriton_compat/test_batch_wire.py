"""Requests and responses arrive at the other side as they were sent, whatever they hold."""

import socket
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from service.pytriton_compat.batch_wire import Entry, receive_batch, send_batch

Array = npt.NDArray[Any]

GRID = np.arange(24, dtype=np.float32).reshape(4, 6)


def _objects(elements: Sequence[bytes], *shape: int) -> npt.NDArray[np.object_]:
    array = np.empty(len(elements), np.object_)
    array[:] = elements
    return array.reshape(shape or (-1, 1))


def _assert_same(found: Mapping[str, Array], sent: Mapping[str, Array]) -> None:
    assert list(found) == list(sent)
    for name, tensor in sent.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        np.testing.assert_array_equal(found[name], tensor)
        if tensor.dtype == np.object_:
            assert all(type(element) is memoryview for element in found[name].flat)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair()
    with near, far:
        yield near, far


def _travel(batch: Sequence[Entry], timeout: float | None = None) -> list[Entry]:
    """From one end of a socket to the other: the sender waits where the socket's buffer is full.

    With a timeout the socket takes at a time what it has room for.
    """
    near, far = socket.socketpair()
    near.settimeout(timeout)
    with near, far, ThreadPoolExecutor(1) as sender:
        sent = sender.submit(send_batch, near, batch)
        received = receive_batch(far)
        sent.result()
    assert received is not None
    return received


def _assert_survives(batch: Sequence[Entry]) -> None:
    for (found, found_detail), (sent, sent_detail) in zip(_travel(batch), batch, strict=True):
        _assert_same(found, sent)
        assert found_detail == sent_detail


TENSORS: dict[str, Array] = {
    "one image": _objects([b"\xff\xd8\xff"]),
    "several, some empty": _objects([b"", b"a" * 70_000, b"", b"\0", "käse".encode()]),
    "no image": _objects([]),
    "two columns": _objects([b"%d" % number for number in range(6)], 3, 2),
    "flat": _objects([b"a", b"bc"], 2),
    "turned": _objects([b"%d" % number for number in range(6)], 3, 2).T,
    "of one dimension less": np.array(b"scalar", np.object_),
    "floats": GRID,
    "special floats": np.array([np.nan, np.inf, -0.0, 1e-45], np.float32),
    "no floats": np.zeros((0, 3, 4, 4), np.float32),
    "a single float": np.float32(3).reshape(()),
    "Fortran's order": np.asfortranarray(GRID),
    "strided": GRID[::2, ::-3],
    "repeated": np.broadcast_to(GRID[0], (5, 6)),
    "other bytes": GRID.astype(">f8"),
    "truth": np.array([[True], [False]]),
    "half": GRID.astype(np.float16),
    "cut strings": np.array([b"abc", b""], "S3"),
}


@pytest.mark.parametrize("tensor", TENSORS.values(), ids=TENSORS)
def test_every_kind_of_tensor_survives_beside_others(tensor: Array) -> None:
    alone, among = {"INPUT": tensor}, {"A": GRID, "INPUT": tensor, "Ä": TENSORS["one image"]}
    _assert_survives([(among, {"first": True}), (alone, None), (among, {"n": 2**53 + 1, "käse 猫\n\0": -1})])


def test_no_requests_and_no_tensors_are_none_on_the_other_side() -> None:
    _assert_survives([])
    _assert_survives([({}, {}), ({}, {})])


def test_a_batch_larger_than_any_socket_buffer_survives() -> None:
    _assert_survives([({"INPUT_IMAGE": _objects([bytes(5_000_000), b"x" * 3_000_001])}, {})] * 3)


@pytest.mark.parametrize("timeout", [None, 60.0])
def test_a_batch_of_more_parts_than_a_socket_takes_at_a_time_survives(timeout: float | None) -> None:
    batch: list[Entry] = [({"INPUT_IMAGE": _objects([b"%d" % number * (number % 97) for number in range(5000)])}, {})]
    ((received, _),) = _travel(batch, timeout)
    _assert_same(received, batch[0][0])


def test_a_closed_connection_is_the_end_and_a_torn_message_an_error(ends: tuple[socket.socket, socket.socket]) -> None:
    near, far = ends
    send_batch(near, [({"EMBEDDING": GRID}, None)])
    whole = far.recv(10_000)
    for cut in (1, 8, 9, len(whole) - 1):
        left, right = socket.socketpair()
        with left, right:
            left.sendall(whole[:cut])
            left.close()
            with pytest.raises(ConnectionResetError):
                receive_batch(right)
    near.close()
    assert receive_batch(far) is None


_SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
_BYTES = hnp.arrays(np.object_, _SHAPES, elements=st.binary(max_size=40))
_NUMBERS = hnp.arrays(st.sampled_from(["f4", "f8", "f2", "u1", "i8", ">i4", "?"]), _SHAPES)
_TENSORS = st.dictionaries(st.text(max_size=9), _BYTES | _NUMBERS | _NUMBERS.map(np.transpose), max_size=4)
_DETAILS = st.none() | st.dictionaries(st.text(), st.text() | st.booleans() | st.integers(), max_size=3)


@settings(deadline=None)
@given(st.lists(st.tuples(_TENSORS, _DETAILS), max_size=5))
def test_any_batch_survives(batch: list[Entry]) -> None:
    _assert_survives(batch)
