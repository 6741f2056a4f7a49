"""The probe believes a service that embeds its image, and says in one line why it believes no other."""

import http.server
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from service.errors import ServiceFailure
from service.probe import probe as ask
from service.process.local_client import LocalClient
from tests.integration.probing import probe
from tests.ports import unused_port
from tests.serving import Quiet, serving

METADATA = {"outputs": [{"name": "EMBEDDING", "shape": [-1, 3]}]}


def answer(*values: float) -> dict[str, Any]:
    """What `embed_image` answers."""
    return {"outputs": [{"name": "EMBEDDING", "data": values}]}


class Fake(http.server.ThreadingHTTPServer):
    """A service that is ready, and answers as the test says."""

    answers: dict[str, tuple[int, Any]]

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers = {"ready": (200, ""), "embed_image": (200, METADATA), "infer": (200, answer(3, -1, 2))}


class _Handler(Quiet, http.server.BaseHTTPRequestHandler):
    server: Fake

    def do_GET(self) -> None:
        status, content = self.server.answers[self.path.rsplit("/", 1)[1]]
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()


@pytest.fixture
def fake() -> Iterator[Fake]:
    with serving(Fake()) as server:
        yield server


@pytest.mark.parametrize(
    ("asked", "status", "content", "line"),
    [
        ("infer", 200, answer(3, -1, 2), "able: an image became an embedding of 3 numbers"),
        ("infer", 503, {"error": "Exceeds maximum queue size"}, "able, but busy: {"),
        ("infer", 400, {"error": "incomplete string data for inference input 'INPUT_IMAGE'"}, "able, but busy: {"),
        ("infer", 200, answer(3, -1), "not able: the image's embedding is not 3 finite"),
        ("infer", 200, answer(3, float("nan"), 1), "not able: the image's embedding is not 3 finite"),
        ("infer", 200, answer(0, 0, 0), "not able: the image's embedding is not 3 finite"),
        ("infer", 200, "hello", "not able: the canary's answer cannot be read"),
        ("infer", 500, {"error": "internal_error"}, "not able: the image was answered with 500: {"),
        ("embed_image", 404, {"error": "unknown model"}, "not able: the model's metadata (404) cannot be read"),
        ("ready", 400, "", "not able: it is not ready"),
    ],
)
def test_one_line_says_what_is_wrong(fake: Fake, asked: str, status: int, content: Any, line: str) -> None:
    fake.answers[asked] = status, content
    try:
        told = ask(LocalClient("127.0.0.1", fake.server_port), 5.0)
    except ServiceFailure as failure:
        told = f"not able: {failure}"
    assert told.startswith(line) and "\n" not in told


def test_nobody_there_and_nobody_answering() -> None:
    nobody = probe("--url", f"http://127.0.0.1:{unused_port()}")
    assert (nobody.returncode, nobody.stderr) == (1, "") and "Connection refused" in nobody.stdout
    with socket.create_server(("127.0.0.1", 0)) as silent:
        found = probe("--url", f"http://127.0.0.1:{silent.getsockname()[1]}", "--timeout-s", "1.5")
    assert (found.returncode, found.stderr) == (1, "") and "not able: " in found.stdout


@pytest.mark.parametrize(
    ("arguments", "environment", "word"),
    [
        (["--bla"], {}, "--bla"),
        (["--timeout-s", "0"], {}, "--timeout-s"),
        (["--url", "https://127.0.0.1:8000"], {}, "--url"),
        (["--token-file", "/no/such/file"], {}, "access_token_file"),
        ([], {"SERVICE_HTTP_PORT": "0"}, "http_port"),
        ([], {"SERVICE_HTTP_PORTS": "1"}, "SERVICE_HTTP_PORTS"),
    ],
)
def test_a_wrong_option_is_no_answer_either(arguments: list[str], environment: dict[str, str], word: str) -> None:
    found = probe(*arguments, environment=environment)
    assert found.returncode == 1 and word in found.stdout and found.stdout.count("\n") == 1 and not found.stderr
