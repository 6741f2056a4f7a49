"""Who may use the service: the token that clients send, and the certificate that they are shown.

Comes in: paths of files. Goes out: their content, checked, or a fault that names the setting. It must not know of the
server's endpoints, and nothing of a secret may appear in what it says.
"""

import hmac
import re
import ssl
from dataclasses import dataclass
from pathlib import Path

from service.errors import StartupFault

# What RFC 6750 allows in a bearer token. One of this length cannot be guessed, even by somebody who could measure how
# many of its bytes are right.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{32,4096}")


@dataclass(frozen=True)
class GrpcTls:
    """Files in PEM format.

    Attributes:
        certificate: of the server, with its chain.
        key: the certificate's private key, unencrypted.
        client_ca: what the certificates of clients are checked with; None asks for none.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True)
class Access:
    """Who may use the server, and by which header.

    Attributes:
        token: what inference and statistics need over gRPC, sent as the metadata
            `triton-grpc-protocol-authorization: Bearer TOKEN`; None lets everybody.
        admin_token: what the endpoints that steer the server need, sent as `triton-access-token: TOKEN`, over gRPC with
            the same prefix; None takes a random one, so that they are closed.
        grpc_tls: None speaks plain text.
        http_token: the same over HTTP, sent as `Authorization: Bearer TOKEN`.
    """

    token: str | None = None
    admin_token: str | None = None
    grpc_tls: GrpcTls | None = None
    http_token: str | None = None


def read_token(path: Path, setting: str) -> str:
    """The token in a file, without the line's end.

    Raises:
        StartupFault: the file cannot be read, or holds no token of 32 characters or more.
    """
    try:
        token = path.read_text().strip()
    except OSError as error:
        raise StartupFault(f"{setting}: the file cannot be read ({error.strerror})") from error
    except ValueError:
        token = ""  # it is no text
    if not _TOKEN.fullmatch(token):
        raise StartupFault(
            f"{setting}: the file must hold one token of 32 characters or more (letters, digits and ._~+/=-),"
            " such as `openssl rand -hex 32` prints"
        )
    return token


def bearer(token: str | None) -> dict[str, str]:
    """The header of HTTP requests that carries the token; none where there is none."""
    return {} if token is None else {"Authorization": f"Bearer {token}"}


def is_allowed(authorization: str | None, token: str | None) -> bool:
    """Whether the value of a request's Authorization header is right, compared in constant time."""
    if token is None:
        return True
    return hmac.compare_digest((authorization or "").encode(), f"Bearer {token}".encode())


def check_tls(tls: GrpcTls) -> None:
    """Find out before Triton does, which says only that it could not start.

    Raises:
        StartupFault: a file cannot be read, or the key does not belong to the certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Without a password of ours, OpenSSL would ask for one at the terminal.
        context.load_cert_chain(tls.certificate, tls.key, password="")
    except (OSError, ValueError) as error:
        raise StartupFault(
            f"grpc_tls_cert and grpc_tls_key must be a certificate and its unencrypted key in PEM format: {error}"
        ) from error
    try:
        if tls.client_ca is not None:
            context.load_verify_locations(tls.client_ca)
    except OSError as error:
        raise StartupFault(f"grpc_tls_client_ca must be a file of certificates in PEM format: {error}") from error
