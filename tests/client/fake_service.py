"""A service whose images say how it answers them: `503 200` is refused at first, and embedded when it is sent again."""

import contextlib
import json
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

from tests.serving import Quiet, serving

DIMENSION = 4
MESSAGES = {
    "200-of-a-proxy": "Bye",
    "301": "it is at Location",
    "400": "corrupt_image: it is damaged",
    "400-of-a-neighbour": "incomplete string data for inference input 'INPUT_IMAGE', expecting string of length 9",
    "401": "Who is there?",
    "403": "This API is restricted",
    "404": "Request for unknown model: 'embed_image' has no available versions",
    "408": "Request Timeout",
    "429": "Too Many Requests",
    "500": "internal_error: the request could not be answered",
    "501": "Unsupported content-encoding",
    "502": "Bad Gateway",
    "503": "Exceeds maximum queue size",
    "504": "Gateway Timeout",
    "520": "Web Server Returned an Unknown Error",
}


class FakeService(ThreadingHTTPServer):
    """Answers on a port of its own.

    An image is `WORD WORD ... #NUMBER`: the first request for it gets the first word's answer, and so on; the last
    word counts for all that follow. A word is a status (and what tells it from another of the same), `breaks` for a
    connection that ends without an answer, or `waits` for a 200 that comes only when `gate` is open. The embedding
    holds the image's number. As many times as `unanswered` says, the configuration is not told.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.fingerprint = "0123456789abcdef"
        self.defaults: dict[str, str] = {}
        self.gate = threading.Event()
        self.is_gone = False
        self.unanswered = 0
        self.asked: Counter[str] = Counter()
        self.answered = 0
        self.connections = 0
        self.lock = threading.Lock()

    def go(self) -> None:
        """From now on, every connection ends without an answer."""
        self.is_gone = True
        self.gate.set()

    def verify_request(self, *_: object) -> bool:
        self.connections += 1
        return True

    def handle_error(self, *_: object) -> None:
        """Clients that are killed are no news."""


class _Handler(Quiet, BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeService

    def do_GET(self) -> None:
        if self.server.unanswered:
            self.server.unanswered -= 1
            return self._send(503, b"")
        parameters = {"fingerprint": self.server.fingerprint, **self.server.defaults}
        config = {
            "parameters": {name: {"string_value": value} for name, value in parameters.items()},
            "output": [{"dims": [DIMENSION]}],
        }
        self._send(200, json.dumps(config).encode())

    def do_POST(self) -> None:
        image = self.rfile.read(int(self.headers["Content-Length"])).decode()
        with self.server.lock:
            turn = self.server.asked[image]
            self.server.asked[image] += 1
        words, number = image.split("#")
        word = (words.split()[turn:] or words.split()[-1:])[0]
        if word == "waits":
            assert self.server.gate.wait(60)
        if word == "breaks":
            self._break()
        elif word in MESSAGES:
            self._send(int(word[:3]), json.dumps({"error": MESSAGES[word]}).encode())
        else:
            self._send(200, b"{}" + np.full(DIMENSION, int(number), np.float32).tobytes())

    def _break(self) -> None:
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def _send(self, status: int, body: bytes) -> None:
        if self.server.is_gone:
            self._break()
            return
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if body.startswith(b"{}"):
            self.send_header("Inference-Header-Content-Length", "2")
        if status == 301:
            self.send_header("Location", f"/moved{self.path}")
        self.end_headers()
        self.wfile.write(body)
        self.server.answered += self.command == "POST"


@contextlib.contextmanager
def fake_service() -> Iterator[FakeService]:
    """One that runs, until the end of the block."""
    with serving(FakeService()) as service:
        try:
            yield service
        finally:
            service.gate.set()
