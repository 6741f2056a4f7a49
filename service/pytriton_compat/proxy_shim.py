"""Runs inside Triton's Python stub, as the `model.py` in front of PyTriton's own (kept beside it as `proxy_model.py`).

PyTriton's proxy can fail a whole batch only, and sends the traceback along; a response that it cannot convert freezes
its lane for ever; its lanes race at start; its tensor store costs more than sending the tensors. What is replaced here
mends that.
"""

import time

import triton_python_backend_utils as pb_utils

from . import proxy_model
from .batch_wire import BatchSerializer
from .fault_wire import read_fault

_HANDSHAKE_SECONDS = 300.0

_wrap_response = proxy_model._wrap_response
_get_config = proxy_model.get_config_from_handshake_server


class TritonPythonModel(proxy_model.TritonPythonModel):
    """What Triton loads."""

    def execute(self, triton_requests):
        """One response a request; a failure of the proxy itself reaches the clients without its traceback."""
        try:
            return super().execute(triton_requests)
        except Exception as error:
            proxy_model.LOGGER.error(f"a batch could not be answered: {error!r}")
            message = "internal_error: the request could not be answered"
            return [_error(message, pb_utils.TritonError.INTERNAL) for _ in triton_requests]


def wrap_response_or_fault(response, requested_outputs, model_outputs):
    """PyTriton's response -> Triton's, a fault for this request alone where the callable asked for one."""
    try:
        fault = read_fault(response.data)
        if fault is None:
            return _wrap_response(response, requested_outputs, model_outputs)
        status, message = fault
        return _error(message, getattr(pb_utils.TritonError, status))
    except Exception as error:
        proxy_model.LOGGER.error(f"a response could not be converted: {error!r}")
        return _error("internal_error: the response could not be converted", pb_utils.TritonError.INTERNAL)


def get_config_patiently(socket_path, timeout_s=_HANDSHAKE_SECONDS):
    """The first lane's configuration, asked for until it answers: on a busy machine one second is too short."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return _get_config(socket_path)
        except (OSError, ValueError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _error(message, status):
    return pb_utils.InferenceResponse([], pb_utils.TritonError(message, status))


def batch_serializer():
    """In the place of PyTriton's tensor store."""
    return BatchSerializer(proxy_model.Request, proxy_model.Response)


proxy_model.TensorStoreSerializerDeserializer = batch_serializer
proxy_model._wrap_response = wrap_response_or_fault
proxy_model.get_config_from_handshake_server = get_config_patiently
