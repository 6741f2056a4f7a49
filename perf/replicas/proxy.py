"""nginx as it is documented: `configs/proxy/nginx.conf` with other addresses, and a certificate made for it."""

import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from perf.findings import NotMeasured
from perf.hosts import Host
from perf.machine import REPOSITORY

_CONFIGURATION = REPOSITORY / "configs" / "proxy" / "nginx.conf"
_START_SECONDS = 10.0


def find_nginx() -> str | None:
    """The path of nginx; Debian puts it where only root looks."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


class Nginx:
    """nginx on a port of a host; what it needs and makes is in `folder`.

    Attributes:
        host, port: where it listens.
        certificate: PEM file that its clients trust.
    """

    def __init__(self, folder: Path, http: Sequence[str], grpc: Sequence[str], port: int, host: Host | None = None):
        """Start it in front of back ends, each `address:port`, and wait until it listens.

        Raises:
            NotMeasured: it does not.
        """
        self.port = port
        self.certificate = folder / "certificate.pem"
        self.host = host or Host()
        _make_certificate(folder, self.host.address)
        (folder / "nginx.conf").write_text(_configuration(http, grpc, port))
        words = (find_nginx() or "nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"), "-g", "daemon off;")
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(self.host.command(*words), stderr=log)
        deadline = time.monotonic() + _START_SECONDS
        while not self.host.call(partial(_listens, self.host.address, port)):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise NotMeasured("nginx does not start")
            time.sleep(0.01)

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(30)


def _make_certificate(folder: Path, address: str) -> None:
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
        f" -addext subjectAltName=DNS:localhost,IP:{address} -keyout key.pem -out certificate.pem"
    )
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)


def _configuration(http: Sequence[str], grpc: Sequence[str], port: int) -> str:
    """The documented file with one line a back end."""
    text = _CONFIGURATION.read_text()
    for documented, back_ends in (("127.0.0.1:8000", http), ("127.0.0.1:8001", grpc)):
        (line,) = (line for line in text.splitlines(keepends=True) if documented in line)
        text = text.replace(line, "".join(line.replace(documented, back_end) for back_end in back_ends))
    return text.replace("8443", str(port))


def _listens(address: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((address, port)) == 0
