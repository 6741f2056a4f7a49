"""What Triton loads into each of its Python stubs: hands batches to a lane of the service, and its answers to Triton.

It takes the place of PyTriton's own proxy, which can fail a whole batch only, sends tracebacks to clients, freezes when
a response cannot be converted, races at start, keeps each tensor in shared memory that a third process manages, and
passes a batch through ten threads on its way. Here the stub's own thread waits for the answer of the lane's own thread.
"""

import contextlib
import ctypes
import json
import os
import signal
import socket
import threading
import time
from pathlib import Path

import triton_python_backend_utils as pb_utils

from .batch_wire import receive_batch, send_batch
from .pulse import keep_pulse

_TERMINATION_SECONDS = 5
_TRIM_SECONDS = 5
_INTERNAL = "INTERNAL", "internal_error: the request could not be answered"
# gRPC carries an error message in a header; one of 50 KB breaks the connection.
_MAX_MESSAGE_CHARACTERS = 2000


class TritonPythonModel:
    """One instance of a model, connected to one lane."""

    def initialize(self, args):
        """Connect to the lane and its pulse, which listen before Triton starts."""
        config = json.loads(args["model_config"])
        self._inputs = [tensor["name"] for tensor in config["input"]]
        index = args["model_instance_name"].rsplit("_", 1)[-1]
        self._lane, pulse = _connect(f"lane-{index}.sock"), _connect(f"pulse-{index}.sock")
        threading.Thread(target=_end_with_the_service, args=(pulse, self._lane, os.getppid()), daemon=True).start()
        threading.Thread(target=_give_back_memory, args=(self._lane,), daemon=True).start()
        library = ctypes.CDLL(None)  # what this process was started with, `preload.so` among it
        if hasattr(library, "standstill_watch"):
            library.standstill_watch()

    def execute(self, requests):
        """One response a request; a failure stays with its request and reaches the client without a traceback."""
        entries = [_attempt(self._entry, request) for request in requests]
        answers = iter(self._ask([entry for entry in entries if entry is not None]))
        return [
            self._response(request, None if entry is None else next(answers))
            for request, entry in zip(requests, entries, strict=True)
        ]

    def finalize(self):
        """Let the lane go: without this word it takes the stub for dead, with answers that nobody got."""
        with contextlib.suppress(OSError):
            send_batch(self._lane, [])
        self._lane.close()

    def _ask(self, entries):
        """The lane's answers, None for each where there are none."""
        if self._lane.fileno() < 0 or not entries:
            # Without a line in the log: a service that hangs reads none, and once its pipe is full nothing can end.
            return [None] * len(entries)
        try:
            send_batch(self._lane, entries)
            answers = receive_batch(self._lane)
            if answers is not None and len(answers) == len(entries):
                return answers
        except Exception as error:
            pb_utils.Logger.log_error(f"the lane does not answer: {error!r}")
        # What may still come would be taken for the answer to the next batch. The service ends when it sees a lane end.
        self._lane.close()
        return [None] * len(entries)

    def _entry(self, request):
        tensors = {name: pb_utils.get_input_tensor_by_name(request, name) for name in self._inputs}
        arrays = {name: tensor.as_numpy() for name, tensor in tensors.items() if tensor is not None}
        return arrays, [_parameters(request), _identity(request)]

    def _response(self, request, answer):
        # No line in the log where there is no answer: it has been told, and see `_ask`.
        response = None if answer is None else _attempt(_answer, request, *answer)
        return response or _error(*_INTERNAL)


def _parameters(request):
    """Those of the request; where they are no UTF-8, one that the service does not know, and refuses by this name."""
    try:
        return json.loads(request.parameters())
    except UnicodeDecodeError:
        return {"(not UTF-8)": ""}


def _identity(request):
    try:
        return request.request_id()
    except UnicodeDecodeError:
        return ""


def _answer(request, tensors, fault):
    if fault:
        return _error(*fault)
    wanted = request.requested_output_names()
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, tensors[name]) for name in tensors if name in wanted])


def _connect(name):
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(Path(__file__).with_name(name)))
    return connection


def _end_with_the_service(pulse, lane, tritonserver):
    """Without the service Triton would go on, report ready and fail every request: end it when the pulse stops."""
    keep_pulse(pulse)
    # Ends this process even where Triton's code waits for a tritonserver that has gone, and holds Python's lock.
    signal.alarm(3 * _TERMINATION_SECONDS)
    with contextlib.suppress(OSError):
        # Nobody is to wait for an answer any more.
        lane.shutdown(socket.SHUT_RDWR)
    for number in (signal.SIGTERM, signal.SIGKILL):
        # It may have ended already, and this process have got another parent.
        if os.getppid() == tritonserver:
            os.kill(tritonserver, number)
            time.sleep(_TERMINATION_SECONDS)
    os._exit(1)


def _give_back_memory(lane):
    """What batches have left in the heap, between what is still used, goes back to the system: of each stub some MB."""
    malloc_trim = ctypes.PyDLL(None).malloc_trim  # keeps Python's lock: never while Triton's code hands answers over
    while lane.fileno() >= 0:
        malloc_trim(ctypes.c_size_t(0))
        time.sleep(_TRIM_SECONDS)


def _attempt(convert, *arguments):
    try:
        return convert(*arguments)
    except Exception as error:
        pb_utils.Logger.log_error(f"a request could not be answered: {error!r}")
        return None


def _error(status, message):
    code = getattr(pb_utils.TritonError, status)
    return pb_utils.InferenceResponse([], pb_utils.TritonError(message[:_MAX_MESSAGE_CHARACTERS], code))
