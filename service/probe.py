"""`python -m service.probe`: asks a running service of this machine whether it can answer.

Comes in: the service's address and token, by default from the settings in the environment. Goes out: one line, and exit
code 0 or 1. It must not know of models or torch, so that it takes a fraction of a second.

It sees what a client would: that the service is ready and that an image becomes a finite, non-zero embedding of the
right length. Whether it is the right embedding only the service knows, which compares one every few seconds and ends
itself when it is wrong. Nor can it tell lanes that hang from lanes with much to do; that, too, the service does itself.

A service that refuses the image because of others, in its queue or its batch, is able: what restarts it then, or takes
its clients away, drops what it has accepted and leaves the same load to fewer.
"""

import argparse
import http.client
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

import numpy as np

from service.access import bearer, read_token
from service.errors import ServiceFailure, StartupFault
from service.health.canary import CANARY_PATH, canary_request, is_crowded_out, read_canary
from service.process.local_client import LocalClient
from service.settings import load_settings

_QUEUE_SHARE = 0.5  # of the time allowed; then a full queue shows as a 503, and not as no answer


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Leave the exit code to `main`: to a container's HEALTHCHECK, 2 is a reserved one."""
        raise StartupFault(message)


def main(arguments: Sequence[str]) -> int:
    """Print what is found in one line; the exit code is 0 for a service that is able, 1 for any other."""
    try:
        options = _read(arguments)
        client = _client(options.url, options.token_file)
        signal.signal(signal.SIGALRM, _on_alarm)
        signal.setitimer(signal.ITIMER_REAL, options.timeout_s)
        print(probe(client, options.timeout_s))
    except (StartupFault, ServiceFailure, OSError, http.client.HTTPException) as error:
        print(f"not able: {error or type(error).__name__}")
        return 1
    return 0


def probe(client: LocalClient, seconds: float) -> str:
    """What a service that is able says of itself.

    Raises:
        ServiceFailure: it is not ready, or answers wrongly.
        OSError, HTTPException: it does not answer.
    """
    if client.get("/v2/health/ready", seconds)[0] != http.client.OK:
        raise ServiceFailure("it is not ready")
    dimension = _dimension(client, seconds)
    request = canary_request(timeout=int(seconds * _QUEUE_SHARE * 1e6))
    status, body = client.post(CANARY_PATH, request, seconds)
    if is_crowded_out(status, body):
        return f"able, but busy: {_text(body)}"
    if status != http.client.OK:
        raise ServiceFailure(f"the image was answered with {status}: {_text(body)}")
    embedding = read_canary(body)
    if embedding.shape != (dimension,) or not np.isfinite(embedding).all() or not embedding.any():
        raise ServiceFailure(f"the image's embedding is not {dimension} finite numbers, or all zeros")
    return f"able: an image became an embedding of {dimension} numbers"


def _dimension(client: LocalClient, seconds: float) -> int:
    """The length of an embedding, as the model's metadata tell it."""
    status, body = client.get("/v2/models/embed_image", seconds)
    try:
        (output,) = json.loads(body)["outputs"]
        return int(output["shape"][-1])
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ServiceFailure(f"the model's metadata ({status}) cannot be read: {_text(body)}") from error


def _read(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="python -m service.probe", description="Ask a running service whether it can answer.", allow_abbrev=False
    )
    parser.add_argument("--url", help="default: http://, then SERVICE_HOST and SERVICE_HTTP_PORT")
    parser.add_argument("--token-file", type=Path, help="default: SERVICE_ACCESS_TOKEN_FILE")
    parser.add_argument("--timeout-s", type=float, default=5.0, help="seconds for all of it; default: %(default)s")
    options = parser.parse_args(arguments)
    if not 0 < options.timeout_s < 3600:
        parser.error("--timeout-s: not between 0 and 3600")
    return options


def _client(url: str | None, token_file: Path | None) -> LocalClient:
    settings = load_settings([])
    token_file = token_file or settings.access_token_file
    headers = bearer(read_token(token_file, "access_token_file") if token_file else None)
    if url is None:
        if not settings.http_port:
            raise StartupFault("http_port is 0: there is nothing that could be asked")
        return LocalClient(settings.host, settings.http_port, headers)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or http.client.HTTP_PORT
    except ValueError as error:
        raise StartupFault(f"--url: {error}") from error
    if parts.scheme != "http" or not host or parts.path.strip("/"):
        raise StartupFault(f"--url: {url!r} is not of the form http://host:port")
    return LocalClient(host, port, headers)


def _on_alarm(*_: object) -> NoReturn:
    raise TimeoutError("it does not answer in time")


def _text(body: bytes) -> str:
    """Of an error's answer one short line."""
    return " ".join(body.decode(errors="replace").split())[:200]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
