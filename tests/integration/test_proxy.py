"""The documented proxy in front of the real service: everything good passes, nothing too large or closed does."""

import contextlib
import gzip
import json
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from pathlib import Path

import grpc  # type: ignore[import-untyped]
import numpy as np
import pytest
import requests
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from perf.replicas.proxy import Nginx, find_nginx
from tests.images import sample
from tests.integration.clients import RAW_HEADERS, Embeddings, base64_text, post_raw, read_raw_answer, triton_input
from tests.integration.service_process import ServiceProcess
from tests.ports import unused_port
from tests.serving import Quiet, serving

pytestmark = pytest.mark.skipif(find_nginx() is None, reason="nginx is not installed")

INFER = "/v2/models/embed_image/infer"
IMAGE = sample("jpeg_photo").data
TOO_MUCH = 200 * 2**20


class Proxy(Nginx):
    """The documented proxy on a port of its own, and what clients send to it."""

    def __init__(self, folder: Path, http_ports: Sequence[int], grpc_port: int) -> None:
        http = [f"127.0.0.1:{port}" for port in http_ports]
        super().__init__(folder, http, [f"127.0.0.1:{grpc_port}"], unused_port())

    def send(self, path: str = INFER, body: bytes = b"", **headers: str) -> requests.Response:
        """A POST through TLS; an empty body makes it a GET."""
        url, given = f"https://localhost:{self.port}{path}", {k.replace("_", "-"): v for k, v in headers.items()}
        method = "POST" if body else "GET"
        return requests.request(method, url, data=body, headers=given, verify=str(self.certificate), timeout=60)

    def connect(self, source: str = "127.0.0.1") -> ssl.SSLSocket:
        """A bare connection through TLS, from an address of this machine."""
        context = ssl.create_default_context(cafile=str(self.certificate))
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=30, source_address=(source, 0))
        return context.wrap_socket(plain, server_hostname="localhost")

    def grpc_client(self) -> tritonclient.grpc.InferenceServerClient:
        """gRPC through TLS."""
        credentials = grpc.ssl_channel_credentials(self.certificate.read_bytes())
        return tritonclient.grpc.InferenceServerClient(f"localhost:{self.port}", ssl=True, creds=credentials)


@pytest.fixture(scope="module")
def proxy(running: ServiceProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """In front of the running service."""
    proxy = Proxy(tmp_path_factory.mktemp("proxy"), [running.http_port], running.grpc_port)
    yield proxy
    proxy.stop()


@pytest.fixture(scope="module")
def direct(running: ServiceProcess) -> Embeddings:
    """The embedding without a proxy."""
    return read_raw_answer(post_raw(running, IMAGE))


RAW = {name.replace("-", "_"): value for name, value in RAW_HEADERS.items()}
TENSOR = {"name": "INPUT_IMAGE", "shape": [1, 1], "datatype": "BYTES", "data": [base64_text(IMAGE)]}
PARAMETERS = {"base64_encoded": True, "binary_data_output": True}
JSON = json.dumps({"inputs": [TENSOR], "parameters": PARAMETERS}).encode()


def test_embeddings_are_the_same_through_it(proxy: Proxy, direct: Embeddings) -> None:
    np.testing.assert_array_equal(read_raw_answer(proxy.send(body=IMAGE, **RAW)), direct)
    np.testing.assert_array_equal(read_raw_answer(proxy.send(body=JSON)), direct)
    with proxy.grpc_client() as client:
        result = client.infer("embed_image", [triton_input(tritonclient.grpc, [IMAGE])])
    np.testing.assert_array_equal(result.as_numpy("EMBEDDING"), direct)


def test_errors_of_the_service_pass(proxy: Proxy) -> None:
    response = proxy.send(body=b"no image", **RAW)
    assert response.status_code == 400 and response.json()["error"].startswith("unsupported_format: ")


@pytest.mark.parametrize("protocol", ["length", "chunked", "grpc"])
def test_200_mb_are_refused_before_the_service_sees_them(running: ServiceProcess, proxy: Proxy, protocol: str) -> None:
    before = memory(running)
    if protocol == "grpc":
        with proxy.grpc_client() as client, pytest.raises(InferenceServerException):
            client.infer("embed_image", [triton_input(tritonclient.grpc, [bytes(TOO_MUCH)])])
    else:
        length = f"Content-Length: {TOO_MUCH}" if protocol == "length" else "Transfer-Encoding: chunked"
        with proxy.connect() as connection:
            connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\n{length}\r\n\r\n".encode())
            if protocol == "chunked":
                # One byte over the limit; nginx answers as soon as it knows.
                connection.sendall(b"%x\r\n" % (48 * 2**20 + 1) + bytes(48 * 2**20 + 1))
            assert connection.recv(12) == b"HTTP/1.1 413"
    assert memory(running) - before < 64 * 2**20


def memory(service: ServiceProcess) -> int:
    """Resident bytes of tritonserver and its stubs, shared ones counted in each."""
    return sum(process.memory_info().rss for process in service.family()[1:])


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "GZIP", "br", "gzip, identity"])
def test_compressed_requests_are_refused(proxy: Proxy, encoding: str) -> None:
    bomb = gzip.compress(bytes(2**20))
    assert proxy.send(body=bomb, Content_Encoding=encoding, **RAW).status_code == 415


def test_compressed_grpc_is_refused(proxy: Proxy) -> None:
    with proxy.grpc_client() as client, pytest.raises(InferenceServerException):
        client.infer("embed_image", [triton_input(tritonclient.grpc, [IMAGE])], compression_algorithm="gzip")


def test_strangers_send_raw_images_only(proxy: Proxy) -> None:
    for header_length, status in (("0", b"400"), ("00", b"415"), ("1", b"415"), ("", b"415")):
        with proxy.connect(source="127.0.0.2") as connection:
            headers = f"Host: x\r\nContent-Length: 2\r\nInference-Header-Content-Length: {header_length}"
            connection.sendall(f"POST {INFER} HTTP/1.1\r\n{headers}\r\n\r\n[]".encode())
            assert connection.recv(12) == b"HTTP/1.1 " + status


@pytest.mark.parametrize(
    "path",
    [
        f"{INFER}?{'a' * 4500}",
        f"{INFER}%0a",
        "/v2//x/../models/embed%5fimage/infer",
        "/v2/repository/..%2fmodels%2fembed_image%2finfer#/index",
    ],
    ids=["long", "a line break", "as nobody writes it", "another one to Triton"],
)
def test_of_a_request_goes_on_only_what_was_looked_at(tmp_path: Path, path: str) -> None:
    """What else Triton would read can end it, fill its memory, or have it hang up and be left out for that."""
    seen: list[tuple[str, set[str]]] = []

    class BackEnd(Quiet, BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append((self.path, {name.lower() for name in self.headers}))
            self.send_response(200)
            self.end_headers()

    with serving(HTTPServer(("127.0.0.1", 0), BackEnd)) as back_end:
        proxy = Proxy(tmp_path, [back_end.server_port], unused_port())
        try:
            with proxy.connect(source="127.0.0.2") as connection:
                known = {"Content-Length": "0", "Authorization": "Bearer x", "Inference-Header-Content-Length": "0"}
                more = {"Content-Type": "application/x-www-form-urlencoded", "Accept-Encoding": "gzip;q=1e999"}
                lines = [f"{name}: {value}\r\n" for name, value in {"Host": "x", **known, **more}.items()]
                connection.sendall(f"POST {path} HTTP/1.1\r\n{''.join(lines)}\r\n".encode())
                assert connection.recv(12) == b"HTTP/1.1 200"
        finally:
            proxy.stop()
    assert seen == [(INFER, {"host", *(name.lower() for name in known)})]


def test_slow_clients_are_cut_off(proxy: Proxy) -> None:
    """In the midst of their headers, and of their body."""
    start = f"POST {INFER} HTTP/1.1\r\nHost: x\r\n".encode()
    with proxy.connect() as in_headers, proxy.connect() as in_body:
        in_headers.sendall(start + b"X: ")
        in_body.sendall(start + b"Content-Length: 1000\r\n\r\nabc")
        for connection in (in_headers, in_body):
            # The connection itself gives up after 30 seconds.
            assert read_to_end(connection)[:12] in (b"", b"HTTP/1.1 408")


def read_to_end(connection: ssl.SSLSocket) -> bytes:
    """What comes until the other side closes the connection, or resets it."""
    content = b""
    try:
        while part := connection.recv(4096):
            content += part
    except ConnectionError:
        pass
    return content


def test_long_headers_are_refused(proxy: Proxy) -> None:
    response = proxy.send("/v2", X="x" * 10_000)
    assert (response.status_code, response.json()) == (400, {"error": "the headers are too long"})


def test_a_wrong_method_is_refused_as_by_the_service(running: ServiceProcess, proxy: Proxy) -> None:
    answers = proxy.send(INFER), requests.get(running.infer_url, timeout=60)
    assert [(each.status_code, each.json()) for each in answers] == [(405, {"error": "Method Not Allowed"})] * 2


def test_more_than_64_requests_in_flight_are_refused_in_json(tmp_path: Path) -> None:
    arrived, go_on = threading.Semaphore(0), threading.Event()

    class BackEnd(Quiet, BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            arrived.release()
            go_on.wait(60)
            self.close_connection = True

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), BackEnd)) as back_end, contextlib.ExitStack() as stack:
        proxy = Proxy(tmp_path, [back_end.server_port], unused_port())
        stack.callback(proxy.stop)
        stack.callback(go_on.set)
        for _ in range(64):
            stack.enter_context(proxy.connect()).sendall(b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n")
            assert arrived.acquire(timeout=60)
        response = proxy.send("/v2")
    assert response.status_code == 429 and response.json()["error"].startswith("too many requests in flight")


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_headers_that_become_long_are_refused(proxy: Proxy) -> None:
    """HTTP/2 packs eight zeros into five bytes, and Triton hangs up on more than 8,191 of them."""
    command = f"curl --silent --http2 --cacert {proxy.certificate} --output /dev/null --write-out %{{http_code}}"
    header, url = f"Authorization: {'0' * 9000}", f"https://localhost:{proxy.port}/v2"
    words = [*command.split(), "--header", header, url]
    # Without an answer, or, from a curl that speaks HTTP/1.1 alone, with one.
    assert subprocess.run(words, capture_output=True, text=True, timeout=60).stdout in ("000", "400")


@pytest.mark.parametrize(
    "path",
    [
        "/v2/repository/index",
        "/v2/repository/models/embed_image/unload",
        "/v2/systemsharedmemory/status",
        "/v2/models/embed_image/trace/setting",
        "/v2/models/embed_image/generate",
        "/v2/models/stats",
        f"/v2/models/{'a' * 100}/infer",
        "/v2/models/embed_image/../../repository/index",
        "/v2/logging",
        "/metrics",
        "/",
    ],
)
def test_only_the_documented_paths_are_open(proxy: Proxy, path: str) -> None:
    assert proxy.send(path).status_code == 404
    assert proxy.send(path, body=b"{}").status_code == 404


def test_health_and_metadata_pass(proxy: Proxy) -> None:
    for path in ("/v2", "/v2/health/ready", "/v2/models/embed_image", "/v2/models/siglip/versions/1/ready"):
        assert proxy.send(path).status_code == 200
    with proxy.grpc_client() as client:
        assert client.is_model_ready("embed_image")
        with pytest.raises(InferenceServerException):
            client.get_model_repository_index()


@pytest.mark.parametrize("another", [False, True])
def test_without_a_back_end_comes_a_503_and_with_one_left_an_answer(
    running: ServiceProcess, tmp_path: Path, another: bool
) -> None:
    gone, grpc_port = unused_port(), unused_port()
    proxy = Proxy(tmp_path, [gone, running.http_port] if another else [gone], grpc_port)
    try:
        for _ in range(4):
            response = proxy.send(body=IMAGE, **RAW)
            assert response.status_code == (200 if another else 503)
            assert another or response.json() == {"error": "the service is not available"}
    finally:
        proxy.stop()
