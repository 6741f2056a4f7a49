"""HTTP servers that stand in for others."""

import contextlib
import threading
from collections.abc import Iterator
from http.server import HTTPServer
from typing import Any, TypeVar

Server = TypeVar("Server", bound=HTTPServer)


class Quiet:
    """A handler that says nothing of what it is asked."""

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def serving(server: Server) -> Iterator[Server]:
    """The server, which answers in a thread of its own until the end of the block."""
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
