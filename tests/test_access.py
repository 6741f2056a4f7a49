"""Tokens and certificates are checked when they are read, and never repeated in what is said about them."""

import subprocess
from pathlib import Path

import pytest

from service.access import GrpcTls, bearer, check_tls, is_allowed, read_token
from service.errors import StartupFault

TOKEN = "correct-horse_battery.staple~0123456789+/="


def test_a_token_is_read_without_the_end_of_its_line(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert read_token(tmp_path / "token", "access_token_file") == TOKEN


@pytest.mark.parametrize("content", [b"", b"\n", b"x" * 31, b"two words " * 9, TOKEN.encode() * 200, b"\xff" * 40])
def test_what_is_no_token_is_told_by_setting_and_not_repeated(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(StartupFault, match=r"^admin_token_file: ") as caught:
        read_token(tmp_path / "token", "admin_token_file")
    assert not content.strip() or content.decode(errors="replace").strip() not in str(caught.value)
    with pytest.raises(StartupFault, match=r"^admin_token_file: the file cannot be read \(No such file .*\)$"):
        read_token(tmp_path / "nowhere", "admin_token_file")


def test_only_the_whole_header_is_let_in() -> None:
    right = bearer(TOKEN)["Authorization"]
    assert is_allowed(right, TOKEN)
    wrong = [
        None,
        "",
        TOKEN,
        right.lower(),
        f"{right} ",
        right[:-1],
        f"{right}x",
        "Bearer ",
        "Bearer käse",
        "Basic eDp5",
    ]
    assert not any(is_allowed(header, TOKEN) for header in wrong)
    assert bearer(None) == {} and is_allowed(None, None)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two certificates with their keys, one key once more under a password."""
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("one", "other"):
        request = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
        _openssl(*request, "-keyout", f"{folder}/{name}.key", "-out", f"{folder}/{name}.pem")
    _openssl("rsa", "-aes128", "-passout", "pass:secret", "-in", f"{folder}/one.key", "-out", f"{folder}/locked.key")
    (folder / "text").write_text("no certificate")
    return folder


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=60)


def test_a_certificate_and_its_key_are_accepted(certificates: Path) -> None:
    one, key = certificates / "one.pem", certificates / "one.key"
    check_tls(GrpcTls(one, key))
    check_tls(GrpcTls(one, key, certificates / "other.pem"))


@pytest.mark.parametrize(
    ("certificate", "key", "client_ca", "named"),
    [
        ("one.pem", "other.key", None, "grpc_tls_cert and grpc_tls_key"),
        ("one.pem", "locked.key", None, "unencrypted"),
        ("text", "one.key", None, "grpc_tls_cert"),
        ("one.pem", "nowhere", None, "grpc_tls_key .*: .*No such file"),
        ("one.pem", "one.key", "text", "grpc_tls_client_ca"),
        ("one.pem", "one.key", "nowhere", "grpc_tls_client_ca .*: .*No such file"),
    ],
)
def test_what_grpc_could_not_use_is_told_by_setting(
    certificates: Path, certificate: str, key: str, client_ca: str | None, named: str
) -> None:
    tls = GrpcTls(certificates / certificate, certificates / key, certificates / client_ca if client_ca else None)
    with pytest.raises(StartupFault, match=named):
        check_tls(tls)
