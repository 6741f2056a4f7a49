"""A fault survives the way to Triton's Python stub, and nothing else is mistaken for one."""

import numpy as np
import pytest

from service.pytriton_compat.fault_wire import fault_response, read_fault


@pytest.mark.parametrize(
    "message",
    ["", "corrupt_image: it is cut", "no model 'käse 猫 \N{CAT FACE}'; served: siglip", "nul \0 and\nline", "é" * 2000],
    ids=ascii,
)
@pytest.mark.parametrize("status", ["INVALID_ARG", "INTERNAL"])
def test_a_fault_survives_the_wire(status: str, message: str) -> None:
    assert read_fault(fault_response(status, message)) == (status, message)


@pytest.mark.parametrize("letter", ["x", "é", "\N{CAT FACE}"], ids=ascii)
def test_messages_are_cut_between_characters(letter: str) -> None:
    assert read_fault(fault_response("INTERNAL", letter * 2000 + "beyond")) == ("INTERNAL", letter * 2000)


def test_the_wire_carries_bytes_as_triton_wants_them() -> None:
    ((name, array),) = fault_response("INTERNAL", "it broke").items()
    assert name.startswith("__") and array.dtype == np.object_
    assert array.tolist() == [b"INTERNAL", b"it broke"]


def test_another_response_is_no_fault() -> None:
    assert read_fault({"EMBEDDING": np.array([[b"INTERNAL", b"it broke"]], np.object_)}) is None
