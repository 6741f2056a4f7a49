"""A fault for one request, as it travels from an inference callable to Triton's Python stub.

A response is nothing but named arrays, so a fault is one under a reserved name. This file runs on both sides (it is
copied beside `stub_model.py`) and therefore imports nothing of the service.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

FAULT_NAME = "__fault__"
# gRPC carries an error message in a header; one of 50 KB breaks the connection.
_MAX_MESSAGE_CHARACTERS = 2000


def fault_response(status: str, message: str) -> dict[str, npt.NDArray[np.object_]]:
    """A response that fails its request with Triton's status (a name of `pb_utils.TritonError`) and a message."""
    parts = [status.encode(), message[:_MAX_MESSAGE_CHARACTERS].encode()]
    return {FAULT_NAME: np.array(parts, dtype=np.object_)}


def read_fault(response: Mapping[str, npt.NDArray[np.object_]]) -> tuple[str, str] | None:
    """The status and the message of a fault response, or None for any other response."""
    if FAULT_NAME not in response:
        return None
    status, message = response[FAULT_NAME]
    return str(status, "utf-8"), str(message, "utf-8")
