"""Clients tell faults apart by their codes, so these are a promise."""

from collections.abc import Iterator

import pytest

from service.errors import ClientFault, Fault

# A code may be added here, and none may be changed or taken away.
CLIENT_CODES = {
    "empty_input",
    "invalid_base64",
    "unsupported_format",
    "corrupt_image",
    "too_many_bytes",
    "too_many_pixels",
    "invalid_tensor",
    "invalid_parameter",
    "unknown_model",
}
CODES = CLIENT_CODES | {"internal_error"}


def _leaves(fault: type[Fault]) -> Iterator[type[Fault]]:
    if not fault.__subclasses__():
        yield fault
    for subclass in fault.__subclasses__():
        yield from _leaves(subclass)


def test_codes_are_unique_and_as_promised() -> None:
    codes = [fault.code for fault in _leaves(Fault)]
    assert sorted(codes) == sorted(CODES)
    assert {fault.code for fault in _leaves(ClientFault)} == CLIENT_CODES


@pytest.mark.parametrize("kind", list(_leaves(Fault)), ids=lambda kind: kind.code)
def test_a_fault_in_a_row_is_the_same_fault(kind: type[Fault]) -> None:
    fault = kind("it is wrong").in_row(3)
    assert type(fault) is kind
    assert str(fault) == f"{kind.code}: row 3: it is wrong"
