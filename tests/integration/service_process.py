"""The real service as a subprocess, for tests that speak to it as its users do."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil
import requests

from tests.ports import unused_port

START_SECONDS = 240.0
STOP_SECONDS = 90.0
# A third of a start's work is to warm up with larger ones, from which most tests gain nothing.
SMALL_BATCHES = ("--max-batch-size", "4")


def wait_for(condition: Callable[[], bool], seconds: float = 240.0) -> None:
    """Wait until the condition holds; fail when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not so after {seconds} s"
        time.sleep(0.05)


class ServiceProcess:
    """One `python -m service` on ports of its own, in a process group of its own, with its output in a file."""

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        module: str = "service",
        environment: Mapping[str, str] | None = None,
        batches: Sequence[str] = SMALL_BATCHES,
    ) -> None:
        self.http_port, self.grpc_port, self.metrics_port = (unused_port() for _ in range(3))
        self.log = folder / f"service-{self.http_port}.log"
        # Not below pytest's folders: a socket's path has a hundred characters to spend.
        self._temporary = tempfile.TemporaryDirectory(prefix="test-")
        self.temporary = Path(self._temporary.name)
        ports = ("--http-port", self.http_port, "--grpc-port", self.grpc_port, "--metrics-port", self.metrics_port)
        # It ends with the thread that started it, also where the tests are killed and tidy nothing up.
        mortal = ("setpriv", "--pdeathsig", "TERM", sys.executable)
        command = [*mortal, "-m", module, *map(str, ports), *batches, *arguments]
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "TMPDIR": str(self.temporary), **(environment or {})},
                start_new_session=True,
            )

    @property
    def url(self) -> str:
        """The base of the HTTP endpoints."""
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def infer_url(self) -> str:
        """The inference endpoint of `embed_image`."""
        return f"{self.url}/v2/models/embed_image/infer"

    def wait_until_ready(self) -> "ServiceProcess":
        """Wait for the health endpoint's word; fail at once when the process ends instead."""
        deadline = time.monotonic() + START_SECONDS
        while not self.is_ready():
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.output()}"
            assert time.monotonic() < deadline, f"not ready after {START_SECONDS} s:\n{self.output()}"
            time.sleep(0.05)
        return self

    def is_ready(self) -> bool:
        """What a load balancer sees."""
        with contextlib.suppress(requests.ConnectionError, requests.Timeout):
            return requests.get(f"{self.url}/v2/health/ready", timeout=2).status_code == 200
        return False

    def metrics(self, headers: Mapping[str, str] | None = None) -> str:
        """A scrape."""
        response = requests.get(f"http://127.0.0.1:{self.metrics_port}/metrics", headers=headers, timeout=30)
        response.raise_for_status()
        return response.text

    def output(self) -> str:
        """All that the service has printed."""
        return self.log.read_text()

    def family(self) -> list[psutil.Process]:
        """The service's process and everything below it."""
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def part(self, word: str) -> psutil.Process:
        """The process below the service whose command line has this word in it."""
        return next(each for each in self.family()[1:] if any(word in argument for argument in each.cmdline()))

    def shared_memory(self) -> list[str]:
        """What is left of its shared memory, also when it has ended."""
        return [path.name for path in Path("/dev/shm").glob(f"embed-{self.process.pid}-*") if path.is_file()]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal the service, wait for its end, and return its exit code."""
        self.process.send_signal(number)
        return self.process.wait(STOP_SECONDS)

    def kill(self) -> None:
        """The last resort of a fixture: end whatever is still there, by pid."""
        if self.process.poll() is None:
            family = self.family()
            for each in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()
            psutil.wait_procs(family, timeout=10)
            self.process.wait()
        self._temporary.cleanup()


@contextlib.contextmanager
def service(
    folder: Path,
    *arguments: str,
    module: str = "service",
    environment: Mapping[str, str] | None = None,
    batches: Sequence[str] = SMALL_BATCHES,
) -> Iterator[ServiceProcess]:
    """A ready service that is gone afterwards, whatever happens."""
    running = ServiceProcess(folder, *arguments, module=module, environment=environment, batches=batches)
    try:
        yield running.wait_until_ready()
    finally:
        if running.process.poll() is None:
            running.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.process.wait(STOP_SECONDS)
        running.kill()
