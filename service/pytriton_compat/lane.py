"""One batch after another from one of Triton's Python stubs, through an inference callable, and back.

It must not know what the callable does.
"""

import logging
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy.typing as npt

from service.pytriton_compat.batch_wire import Tensors, receive_batch, send_batch

logger = logging.getLogger(__name__)


class Request(NamedTuple):
    """One request of a batch: its input tensors by name, its parameters, and the id that the client gave it, if any."""

    data: Mapping[str, npt.NDArray[Any]]
    parameters: Mapping[str, str | int | bool]
    id: str = ""


class Response(NamedTuple):
    """The answer to a request: output tensors by name, or a fault (status of `pb_utils.TritonError`, and message)."""

    tensors: Tensors
    fault: tuple[str, str] | None = None


# One response a request, in their order. Never raises.
InferenceCallable = Callable[[Sequence[Request]], Sequence[Response]]


class Lane(threading.Thread):
    """A thread that answers the batches of one stub, from when the stub connects until it leaves.

    Attributes:
        model: whose batches they are.
        batches: the number of those received so far.
        in_the_works: the number of requests in the last of them, until it is answered.
        was_let_go: whether its stub has left, in order, with nothing unanswered.
    """

    def __init__(self, model: str, path: Path, infer: InferenceCallable) -> None:
        """Listen at `path` from now on."""
        super().__init__(name=f"{path.parent.parent.name}-{path.stem}", daemon=True)
        self.model = model
        self.batches = 0
        self.in_the_works = 0
        self.was_let_go = False
        self._infer = infer
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)

    def run(self) -> None:
        """Answer; a thread that has ended answers nothing any more."""
        try:
            with self._listener:
                connection, _ = self._listener.accept()
            with connection:
                while self._answer_batch(connection):
                    pass
        except Exception:
            logger.exception("%s has failed", self.name)

    def _answer_batch(self, connection: socket.socket) -> bool:
        """Answer the next batch, of which nothing is kept while another one is awaited; False where there is none."""
        batch = receive_batch(connection)
        if not batch:
            self.was_let_go = batch is not None
            return False
        self.batches, self.in_the_works = self.batches + 1, len(batch)
        send_batch(connection, self._infer([Request(tensors, *detail) for tensors, detail in batch]))
        self.in_the_works = 0
        return True
