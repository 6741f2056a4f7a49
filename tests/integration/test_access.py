"""Tokens and TLS of the running service; what is closed is closed over HTTP and gRPC."""

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest
import requests
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from service.client.command import main as embed_many
from tests.integration.clients import HUGE_SHAPE, RAW_HEADERS, triton_input
from tests.integration.probing import probe
from tests.integration.reference import photographs
from tests.integration.service_process import ServiceProcess, service, wait_for

TOKEN, ADMIN_TOKEN = "token-of-the-users-0123456789abcdef", "token-of-the-operators-0123456789abcdef"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
GRPC_TOKEN = "triton-grpc-protocol-authorization"
ADMIN = {"triton-access-token": ADMIN_TOKEN}
DEEPLY_NESTED = (
    '{"inputs": [{"name": "INPUT_IMAGE", "shape": [1, 1], "datatype": "BYTES", "data": '
    + "[" * 2_000_000
    + "]" * 2_000_000
    + "}]}"
)
ADMIN_CALLS = [
    ("POST", "/v2/repository/index"),
    ("POST", "/v2/repository/models/embed_image/unload"),
    ("GET", "/v2/systemsharedmemory/status"),
    ("GET", "/v2/cudasharedmemory/status"),
    ("GET", "/v2/trace/setting"),
    ("GET", "/v2/logging"),
]


class Guarded(NamedTuple):
    """A service behind tokens and TLS, and the certificate that both sides prove themselves with.

    It listens on every interface, and normalizes.
    """

    service: ServiceProcess
    token: Path
    certificate: Path
    key: Path


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "token").write_text(f"{TOKEN}\n")
    (folder / "admin token").write_text(ADMIN_TOKEN)
    certificate, key = folder / "the certificate.pem", folder / "the key.pem"
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    request += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(request, check=True, capture_output=True, timeout=60)
    files = {"access-token-file": folder / "token", "admin-token-file": folder / "admin token"}
    files |= {"grpc-tls-cert": certificate, "grpc-tls-key": key, "grpc-tls-client-ca": certificate}
    arguments = [word for name, path in files.items() for word in (f"--{name}", str(path))]
    with service(folder, *arguments, "--host", "0.0.0.0", "--default-normalize", "true") as running:
        wait_for(lambda: "ready: embed_image" in running.output())
        yield Guarded(running, folder / "token", certificate, key)


def _infer(running: ServiceProcess, headers: dict[str, str]) -> int:
    return requests.post(
        running.infer_url, data=photographs()[0], headers={**RAW_HEADERS, **headers}, timeout=60
    ).status_code


def test_what_passes_through_shared_memory_is_for_the_services_user_alone(guarded: Guarded) -> None:
    running = guarded.service
    assert _infer(running, BEARER) == 200
    modes = {(Path("/dev/shm") / name).stat().st_mode & 0o777 for name in running.shared_memory()}
    assert modes == {0o600}


def test_http_needs_the_token_but_not_to_see_whether_it_is_ready(guarded: Guarded) -> None:
    running = guarded.service
    wrong: list[dict[str, str]] = [{}, {"Authorization": TOKEN}, {"Authorization": f"Bearer {TOKEN}x"}, ADMIN]
    assert [_infer(running, headers) for headers in wrong] == [403] * 4 and _infer(running, BEARER) == 200
    for url in (f"{running.url}/v2/models/embed_image/stats", f"http://127.0.0.1:{running.metrics_port}/metrics"):
        statuses = [requests.get(url, headers=headers, timeout=60).status_code for headers in ({}, BEARER)]
        assert statuses in ([403, 200], [401, 200])
    assert requests.get(f"{running.url}/v2/health/ready", timeout=60).status_code == 200


@pytest.mark.parametrize(
    ("body", "headers"),
    [(HUGE_SHAPE, {}), (DEEPLY_NESTED, {}), ("{}", {"Accept-Encoding": "gzip;q=1e999"})],
    ids=["huge shape", "deeply nested", "no number as weight"],
)
def test_what_would_end_triton_is_not_even_parsed_without_the_token(
    guarded: Guarded, body: str, headers: dict[str, str]
) -> None:
    assert requests.post(guarded.service.infer_url, data=body, headers=headers, timeout=60).status_code == 403
    assert guarded.service.is_ready() and _infer(guarded.service, BEARER) == 200


def _answer(connection: socket.socket) -> bytes:
    """All of it, until the connection ends."""
    with connection:
        return b"".join(iter(lambda: connection.recv(4096), b""))


def _has_read_all(port: int) -> bool:
    """Whether nothing of what was sent to a port waits there for who listens."""
    connections = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines())
    return all(queues.endswith(":00000000") for _, to, _, _, queues, *_ in connections if to.endswith(f":{port:04X}"))


def test_nobody_reads_what_another_request_has_left_in_memory(running: ServiceProcess) -> None:
    """Of a first line that comes in two pieces Triton takes one byte too many for the path, and repeats it."""

    def connect() -> socket.socket:
        return socket.create_connection(("127.0.0.1", running.http_port), timeout=60)

    for _ in range(3):  # by then the memory of requests is that of others before
        for _ in range(50):
            connection = connect()
            connection.sendall(b"GET /v2/health/live HTTP/1.0\r\nAuthorization: Bearer %s\r\n\r\n" % (b"Z" * 300))
            assert b"200 OK" in _answer(connection)
        curious = [connect() for _ in range(50)]
        for piece in (b"GET /v2/models/" + b"a" * 200, b" HTTP/1.0\r\n\r\n"):
            for connection in curious:
                connection.sendall(piece)
            wait_for(lambda: _has_read_all(running.http_port))
        answers = b"".join(map(_answer, curious))
        assert answers and b"Z" not in answers


def test_what_a_request_only_announces_takes_no_memory(running: ServiceProcess) -> None:
    """Triton reserves it with the first byte, before it looks at a token: it must stay untouched."""
    length = 2**30
    with socket.create_connection(("127.0.0.1", running.http_port), timeout=60) as connection:
        head = f"POST /v2/models/embed_image/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"
        connection.sendall(head.encode() + b"x")
        connection.shutdown(socket.SHUT_WR)
        assert _answer(connection) == b""
    status = Path(f"/proc/{running.part('tritonserver').pid}/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    assert int(peak.split()[1]) * 1024 < length // 2


def _client(guarded: Guarded, *proof: Path) -> tritonclient.grpc.InferenceServerClient:
    """A client that trusts the service, and proves itself with its key and certificate."""
    key, chain = map(str, proof) if proof else (None, None)
    return tritonclient.grpc.InferenceServerClient(
        f"127.0.0.1:{guarded.service.grpc_port}",
        ssl=True,
        root_certificates=str(guarded.certificate),
        private_key=key,
        certificate_chain=chain,
    )


def test_grpc_needs_the_token_in_metadata_of_its_own_name(guarded: Guarded) -> None:
    images = [triton_input(tritonclient.grpc, [photographs()[0]])]
    value = BEARER["Authorization"]
    with _client(guarded, guarded.key, guarded.certificate) as client:
        for headers in ({}, {"authorization": value}, {GRPC_TOKEN: TOKEN}):
            with pytest.raises(InferenceServerException, match="restricted"):
                client.infer("embed_image", images, headers=headers)
        result = client.infer("embed_image", images, headers={GRPC_TOKEN: value})
    assert result.as_numpy("EMBEDDING").shape == (1, 128)


def test_grpc_speaks_tls_with_clients_that_prove_themselves_and_nothing_else(guarded: Guarded) -> None:
    plain = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{guarded.service.grpc_port}")
    for refused in (plain, _client(guarded)):
        with refused, pytest.raises(InferenceServerException, match="UNAVAILABLE"):
            refused.is_server_live()
    with _client(guarded, guarded.key, guarded.certificate) as client:
        assert client.is_server_live()


@pytest.mark.parametrize(("method", "path"), ADMIN_CALLS)
def test_what_steers_the_server_needs_the_operators_token(
    guarded: Guarded, running: ServiceProcess, method: str, path: str
) -> None:
    def status(base: str, headers: dict[str, str]) -> int:
        return requests.request(method, f"{base}{path}", headers=headers, json={}, timeout=60).status_code

    assert [status(guarded.service.url, headers) for headers in ({}, BEARER)] == [403, 403]
    assert [status(running.url, headers) for headers in ({}, ADMIN)] == [403, 403], "off where no token was set"
    if not path.endswith("unload"):
        assert status(guarded.service.url, ADMIN) == 200


def test_no_secret_can_be_read_on_command_lines_or_in_the_log(guarded: Guarded) -> None:
    seen = [" ".join(process.cmdline()) for process in guarded.service.family()] + [guarded.service.output()]
    assert not [text for text in seen if TOKEN in text or ADMIN_TOKEN in text]


@pytest.mark.parametrize("scheme", ["http", "grpcs"])
def test_the_command_for_many_images_shows_token_and_certificate_and_notes_that_embeddings_are_normalized(
    guarded: Guarded, tmp_path: Path, scheme: str
) -> None:
    for name, token in (("token", TOKEN), ("wrong", ADMIN_TOKEN)):
        (tmp_path / name).write_text(f"{token}\n")
    (tmp_path / "image.jpg").write_bytes(photographs()[0])
    port = guarded.service.http_port if scheme == "http" else guarded.service.grpc_port
    proof = ["--ca-file", guarded.certificate, "--cert-file", guarded.certificate, "--key-file", guarded.key]
    words = ["embed", tmp_path, "--url", f"{scheme}://127.0.0.1:{port}", "--out", tmp_path / "out.parquet", *proof]
    arguments = [str(word) for word in words]
    assert embed_many([*arguments, "--token-file", str(tmp_path / "wrong")]) == embed_many(arguments) == 2
    assert embed_many([*arguments, "--token-file", str(tmp_path / "token")]) == 0
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.metadata[b"normalize"] == b"True" and len(table) == 1
    np.testing.assert_allclose(np.linalg.norm(table["embedding"].to_pylist(), axis=1), 1.0, rtol=1e-5)


def test_the_probe_finds_the_service_and_its_token_by_the_settings_in_the_environment(guarded: Guarded) -> None:
    environment = {"SERVICE_HOST": "0.0.0.0", "SERVICE_HTTP_PORT": str(guarded.service.http_port)}
    found = probe(environment={**environment, "SERVICE_ACCESS_TOKEN_FILE": str(guarded.token)})
    assert found.stdout == "able: an image became an embedding of 128 numbers\n" and found.returncode == 0
    assert probe("--token-file", str(guarded.token), environment=environment).returncode == 0
    refused = probe(environment=environment)
    assert refused.returncode == 1 and "not able: the image was answered with 403" in refused.stdout


def test_a_canary_gets_through_with_the_token(guarded: Guarded) -> None:
    images = 'embed_images_total{code="ok"} '

    def answered() -> float:
        return float(guarded.service.metrics(BEARER).split(images)[1].split()[0])

    before = answered()
    wait_for(lambda: answered() > before)
