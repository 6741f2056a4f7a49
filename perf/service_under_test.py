"""The service as a process of its own on ports of its own: started, read, ended and killed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from perf.findings import NotMeasured
from perf.hosts import Host
from perf.load.protocols import Target
from perf.machine import REPOSITORY
from perf.vitals import Vitals, vitals

_START_SECONDS = 600.0
_STOP_SECONDS = 90.0


@dataclass(frozen=True)
class Statistics:
    """Triton's counters of `embed_image`, or what one period added to them: images, batches, and seconds queued."""

    images: int
    batches: int
    queue_seconds: float

    def since(self, earlier: "Statistics") -> "Statistics":
        """What the period from `earlier` to now added."""
        return Statistics(
            self.images - earlier.images, self.batches - earlier.batches, self.queue_seconds - earlier.queue_seconds
        )

    @property
    def mean_batch(self) -> float:
        """Images a batch."""
        return self.images / max(1, self.batches)


class Service:
    """One `python -m service`, ready inside `with`, gone after it; it can be ended and started again meanwhile."""

    def __init__(self, *arguments: str, host: Host | None = None) -> None:
        self.host = host or Host()
        self._ports = self.host.ports()
        options = ("--http-port", "--grpc-port", "--metrics-port")
        ports = [text for option, port in zip(options, self._ports, strict=True) for text in (option, str(port))]
        words = ("--log-level", "warning", "--host", self.host.address, *ports, *arguments)
        self._command = self.host.command(sys.executable, "-m", "service", *words)

    def __enter__(self) -> "Service":
        self.start()
        try:
            self.wait_until_ready()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def start(self) -> None:
        """Start it; it is not there yet."""
        # A short path: sockets are made below it, and theirs have a hundred characters to spend.
        self._folder = tempfile.TemporaryDirectory(prefix="perf-")
        self._log = Path(self._folder.name) / "log"
        self._started = time.perf_counter()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=REPOSITORY,
                env={**os.environ, "TMPDIR": self._folder.name},
                # Ctrl-C is for us, who then end the service in order.
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        """Wait until clients are answered.

        Raises:
            NotMeasured: it has ended instead.
        """
        deadline = self._started + _START_SECONDS
        while not self._is_ready():
            if self._process.poll() is not None or time.perf_counter() > deadline:
                raise NotMeasured(f"the service did not start: {self._last_line()}")
            time.sleep(0.01)
        self.start_seconds = time.perf_counter() - self._started

    def end(self) -> int:
        """End it in order, with all its processes; its exit code."""
        return self._stop(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the service's own process, and wait until the others have noticed and ended."""
        self._stop(signal.SIGKILL)

    def target(self, protocol: str) -> Target:
        """`embed_image` by the given protocol."""
        http, grpc, _ = self._ports
        address = self.host.address
        url = f"{address}:{grpc}" if protocol.startswith("kserve-grpc") else f"http://{address}:{http}"
        return Target("service", protocol, url)

    def statistics(self) -> Statistics:
        """Triton's counters of `embed_image` since the start."""
        (model,) = json.loads(self._get(0, "/v2/models/embed_image/stats"))["model_stats"]
        queue_seconds = int(model["inference_stats"]["queue"]["ns"]) / 1e9
        return Statistics(int(model["inference_count"]), int(model["execution_count"]), queue_seconds)

    def metrics(self) -> str:
        """All metrics, in Prometheus' text format."""
        return self._get(2, "/metrics")

    def cpu_seconds(self) -> tuple[float, float]:
        """CPU time spent so far by the service's own process, and by all of Triton's."""
        own, *others = (sum(each.cpu_times()[:2]) for each in self._family())
        return own, sum(others)

    def vitals(self) -> Vitals:
        """What all processes of the service hold now.

        Raises:
            NotMeasured: the service has ended, or a part of it.
        """
        with contextlib.suppress(psutil.NoSuchProcess):
            if self._process.poll() is None:
                return vitals(self._family())
        raise NotMeasured(f"the service, or a part of it, has ended: {self._last_line()}")

    def _get(self, port: int, path: str) -> str:
        url = f"http://{self.host.address}:{self._ports[port]}{path}"
        return self.host.call(partial(_read, url))

    def _is_ready(self) -> bool:
        with contextlib.suppress(OSError):
            self._get(0, "/v2/health/ready")
            return True
        return False

    def _last_line(self) -> str:
        return self._log.read_text(errors="replace").strip().split("\n")[-1][:300]

    def _family(self) -> list[psutil.Process]:
        parent = psutil.Process(self._process.pid)
        return [parent, *parent.children(recursive=True)]

    def _stop(self, number: signal.Signals) -> int:
        """Signal it, and kill what is still there when it had time to end."""
        if self._process.poll() is None:
            others = self._family()[1:]
            self._process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_SECONDS)
            self._process.kill()
            for each in psutil.wait_procs(others, timeout=_STOP_SECONDS)[1]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()
        self._folder.cleanup()
        return self._process.wait()


def _read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=60) as response:
        text: str = response.read().decode()
        return text
