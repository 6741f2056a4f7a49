"""The address where the service's measurements are read together with Triton's own.

Comes in: both. Goes out: one text a scrape, to few clients at a time, and to none for long. It must not know what is
measured.
"""

import contextlib
import http.client
import logging
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any

from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from service.access import is_allowed
from service.metrics import Metrics
from service.process.local_client import LocalClient

logger = logging.getLogger(__name__)

_TRITON_TIMEOUT_SECONDS = 5.0
# Connections at a time, how long each may be silent, and how long a scrape may take in all.
_MOST_SCRAPES = 16
_SCRAPER_TIMEOUT_SECONDS = 5.0
_SCRAPE_SECONDS = 20.0
_TRITON_OPENS_SECONDS = 0.01
_END_SECONDS = 0.1  # in which the endpoint notices that it is to end


class _Server(ThreadingTCPServer):
    """Not http.server's own, which looks up the host's name first: for 40 s, where no name server answers."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(address, handler)
        self._room = threading.BoundedSemaphore(_MOST_SCRAPES)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Hang up on a client too many: each takes a thread, and a file descriptor that the service may need."""
        if not self._room.acquire(blocking=False):
            return self.shutdown_request(request)
        try:
            super().process_request(request, client_address)
        except BaseException:  # there is no thread for it
            self._room.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer it within the time allowed, also where the client sends a byte every now and then, and make room."""
        end = threading.Timer(_SCRAPE_SECONDS, _hang_up, (request,))
        end.daemon = True
        try:
            end.start()
            super().process_request_thread(request, client_address)
        except RuntimeError:  # there is no thread for the timer
            self.shutdown_request(request)
        finally:
            end.cancel()
            self._room.release()

    def handle_error(self, request: object, client_address: object) -> None:
        """Log it; by itself the library prints a traceback where a client leaves before its answer is complete."""
        logger.warning("a scrape could not be answered", exc_info=True)


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it has just ended
        connection.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def metrics_endpoint(
    metrics: Metrics, host: str, port: int, triton: LocalClient, token: str | None = None
) -> Iterator[None]:
    """Serve Triton's measurements, asked for by `triton`, and ours at `http://host:port/metrics`.

    Args:
        token: what a scrape has to send as `Authorization: Bearer TOKEN`; None lets everybody.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = _SCRAPER_TIMEOUT_SECONDS

        def do_GET(self) -> None:
            if self.path.partition("?")[0] != "/metrics":  # as Triton, which passes over a scraper's parameters
                return self.send_error(404)
            if not is_allowed(self.headers.get("Authorization"), token):
                return self.send_error(401)
            try:
                text = _read(triton) + generate_latest(metrics.registry)
            except (OSError, http.client.HTTPException):
                return self.send_error(503, "Triton does not answer")
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE_PLAIN_0_0_4)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *args: object) -> None:
            logger.debug(format, *args)

    server = _Server((host, port), Handler)
    threading.Thread(target=server.serve_forever, args=(_END_SECONDS,), name="metrics", daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def _read(triton: LocalClient) -> bytes:
    """Triton's measurements. It opens their port some milliseconds after the one where it looks ready."""
    deadline = time.monotonic() + _TRITON_TIMEOUT_SECONDS
    while True:
        try:
            status, text = triton.get("/metrics", _TRITON_TIMEOUT_SECONDS)
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
        else:
            if status != http.client.OK:
                raise http.client.HTTPException(f"the answer is {status}")
            return text
        time.sleep(_TRITON_OPENS_SECONDS)
