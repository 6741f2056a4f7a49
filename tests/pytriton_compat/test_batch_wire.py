"""Requests and responses arrive at the other side as they were sent, whatever they hold."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pytriton.proxy.types import Request, Response

from service.pytriton_compat.batch_wire import BatchSerializer
from service.pytriton_compat.fault_wire import fault_response, read_fault

Array = npt.NDArray[Any]

SERIALIZER = BatchSerializer(Request, Response)
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
            assert all(type(element) is bytes for element in found[name].flat)


def _assert_survives(requests: Sequence[Any]) -> None:
    """As requests, and their tensors as responses, too."""
    message = SERIALIZER.serialize_requests(requests)
    assert type(message) is bytes
    received = SERIALIZER.deserialize_requests(message)
    for found, sent in zip(received, requests, strict=True):
        assert type(found) is Request
        _assert_same(found.data, sent.data)
        assert (found.parameters, found.requested_output_names) == (sent.parameters, sent.requested_output_names)
    batch: list[Mapping[str, Array]] = [request.data for request in requests]
    responses = SERIALIZER.deserialize_responses(SERIALIZER.serialize_responses(batch))
    for response, tensors in zip(responses, batch, strict=True):
        assert type(response) is Response
        _assert_same(response.data, tensors)


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
    alone, among = Request({"INPUT": tensor}), Request({"A": GRID, "INPUT": tensor, "Ä": TENSORS["one image"]})
    _assert_survives([among, alone, among])


@pytest.mark.parametrize(
    "parameters",
    [None, {}, {"base64_encoded": True, "n": 2**53 + 1, "embed_model": "käse 猫 \N{CAT FACE}\n\0", "": -1}],
    ids=["none", "empty", "several"],
)
@pytest.mark.parametrize("names", [None, [], ["EMBEDDING"], ["B", "A", "ü"]], ids=str)
def test_what_a_request_asks_for_survives(
    parameters: dict[str, str | int | bool] | None, names: list[str] | None
) -> None:
    asked = Request({"INPUT": GRID}, parameters, None, names)
    _assert_survives([asked, Request({"INPUT": GRID}, {"base64_encoded": False}), asked])


def test_no_requests_and_no_tensors_are_none_on_the_other_side() -> None:
    _assert_survives([])
    _assert_survives([Request({}), Request({})])


def test_faults_and_embeddings_of_one_batch_survive() -> None:
    fault: dict[str, Array] = dict(fault_response("INVALID_ARG", "corrupt_image: käse"))
    sent: list[dict[str, Array]] = [{"EMBEDDING": GRID}, fault, {"EMBEDDING": GRID[:1]}]
    received = SERIALIZER.deserialize_responses(SERIALIZER.serialize_responses(sent))
    assert [read_fault(response.data) for response in received] == [None, ("INVALID_ARG", "corrupt_image: käse"), None]
    _assert_same(received[0].data, sent[0])
    _assert_same(received[2].data, sent[2])


def test_nothing_is_kept_between_messages_nor_shared_with_the_sender() -> None:
    pixels = GRID.copy()
    message = SERIALIZER.serialize_requests([Request({"PIXELS": pixels})])
    pixels[...] = 0
    for _ in range(2):
        (request,) = SERIALIZER.deserialize_requests(message)
        np.testing.assert_array_equal(request.data["PIXELS"], GRID)
        SERIALIZER.free_requests_resources(message)
        SERIALIZER.free_responses_resources(message)


def test_it_starts_and_ends_as_pytriton_asks() -> None:
    SERIALIZER.start("ipc://socket")
    SERIALIZER.connect("ipc://socket", authkey=b"key")
    SERIALIZER.connect("ipc://socket", b"key")
    SERIALIZER.close()


_SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
_BYTES = hnp.arrays(np.object_, _SHAPES, elements=st.binary(max_size=40))
_NUMBERS = hnp.arrays(st.sampled_from(["f4", "f8", "f2", "u1", "i8", ">i4", "?"]), _SHAPES)
_REQUESTS = st.lists(
    st.builds(
        Request,
        data=st.dictionaries(st.text(max_size=9), _BYTES | _NUMBERS | _NUMBERS.map(np.transpose), max_size=4),
        parameters=st.none() | st.dictionaries(st.text(), st.text() | st.booleans() | st.integers(), max_size=3),
        span=st.none(),
        requested_output_names=st.none() | st.lists(st.text(), max_size=3),
    ),
    max_size=5,
)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(requests=_REQUESTS)
def test_whatever_a_batch_holds_survives(requests: list[Any]) -> None:
    _assert_survives(requests)
