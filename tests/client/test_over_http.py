"""Connections over HTTP: how many, for how long, to whom, and what is no answer."""

import asyncio
import socket
import ssl
import subprocess
from pathlib import Path

import pytest

from service.client import command, over_http
from service.client.transport import Access, TryAgain
from tests.client.fake_service import FakeService
from tests.client.running import Client, expected, when


def test_as_many_requests_are_in_flight_as_is_said(client: Client, fake: FakeService) -> None:
    """aiohttp by itself opens no more than 100 connections."""
    images = client.images(*["waits"] * 120)
    when(lambda: len(fake.asked) == 110, fake.gate.set)
    assert client.embed(images, "--in-flight", 110) == 0
    assert client.embeddings() == expected(120)


def test_a_machine_that_has_gone_without_a_word_is_not_waited_for_as_an_answer_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a listener whose room for connections is taken, it does not even refuse one."""

    async def embed(port: int) -> None:
        async with over_http.connect_http(f"http://127.0.0.1:{port}", "embed_image", Access(), 1e6) as transport:
            with pytest.raises(TryAgain, match="no answer in time"):
                await transport.embed(b"")

    monkeypatch.setattr(over_http, "_CONNECT_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as silent, socket.create_connection(silent.getsockname()):
        asyncio.run(embed(silent.getsockname()[1]))


def test_connections_are_opened_anew_now_and_then(
    client: Client, fake: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or replicas that join would never be sent anything."""
    images = client.images(*["200"] * 10)
    monkeypatch.setattr(over_http, "_REQUESTS_A_CONNECTION", 10**9)
    assert client.embed(images, "--in-flight", 1, "--out", tmp_path / "first.parquet") == 0
    assert fake.connections == 1
    monkeypatch.setattr(over_http, "_REQUESTS_A_CONNECTION", 1)
    assert client.embed(images, "--in-flight", 1) == 0
    assert fake.connections >= 10 and set(fake.asked.values()) == {2}


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("301", "HTTP 301: the way on is /moved/v2/models/embed_image/infer; change --url"),
        ("401", "HTTP 401: Who is there?"),  # as a proxy asks
        ("200-of-a-proxy", "what answers there is no service of image embeddings"),  # as long as an embedding
    ],
)
def test_redirections_and_what_is_no_answer_are_not_followed_but_told(client: Client, answer: str, told: str) -> None:
    assert client.embed(client.images(answer)) == 2
    assert client.said().endswith(f"error: {told}\n")
    assert not client.out.exists()


def test_over_https_a_certificate_may_hold_its_key(client: Client, fake: FakeService, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    request += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(both), "-out", str(tmp_path / "certificate")]
    subprocess.run(request, check=True, capture_output=True, timeout=60)
    both.write_bytes(both.read_bytes() + (tmp_path / "certificate").read_bytes())
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(both))
    context.load_cert_chain(both)
    context.verify_mode = ssl.CERT_REQUIRED
    fake.socket = context.wrap_socket(fake.socket, server_side=True)
    doors = ["--url", f"HTTPS://127.0.0.1:{fake.server_port}/", "--ca-file", both, "--cert-file", both]
    assert client.embed(client.images("200"), *doors) == 0
    assert client.embeddings() == expected(1)


@pytest.mark.parametrize(("typed", "meant"), [("HTTPS://Host:1/", "https://Host:1"), ("GRPCS://h:1", "grpcs://h:1")])
def test_an_address_means_the_same_however_it_is_typed(typed: str, meant: str) -> None:
    """Taken by the letter, it would be spoken to in plain text, the token included."""
    assert command._url(typed) == meant
