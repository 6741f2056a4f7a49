"""The service as a process of its own on free ports: started, read and ended."""

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
from pathlib import Path
from types import TracebackType

import psutil

from perf.load.protocols import Target
from perf.machine import REPOSITORY
from perf.samples import NotMeasured
from perf.vitals import Vitals, vitals
from service.ports import free_ports

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
    """One `python -m service`, ready inside `with`, gone after it."""

    def __init__(self, *arguments: str) -> None:
        self._ports = free_ports(3)
        options = ("--http-port", "--grpc-port", "--metrics-port")
        ports = [text for option, port in zip(options, self._ports, strict=True) for text in (option, str(port))]
        self._command = [sys.executable, "-m", "service", "--log-level", "warning", *ports, *arguments]

    def __enter__(self) -> "Service":
        # A short path: sockets are made below it, and theirs have a hundred characters to spend.
        self._folder = tempfile.TemporaryDirectory(prefix="perf-")
        self._log = Path(self._folder.name) / "log"
        started = time.perf_counter()
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
        try:
            self._wait_until_answered(0, "/v2/health/ready")
            self.start_seconds = time.perf_counter() - started
            # Triton opens its metrics after its other ports.
            self._wait_until_answered(2, "/metrics")
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def target(self, protocol: str) -> Target:
        """`embed_image` by the given protocol."""
        http, grpc, _ = self._ports
        url = f"127.0.0.1:{grpc}" if protocol.startswith("kserve-grpc") else f"http://127.0.0.1:{http}"
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

    def memory_mb(self) -> float:
        """Memory of all processes of the service in MB, as `vitals` counts it."""
        return self.vitals().total_mb

    def vitals(self) -> Vitals:
        """What all processes of the service hold now.

        Raises:
            NotMeasured: the service has ended, or a part of it.
        """
        try:
            if self._process.poll() is None:
                return vitals(self._family())
        except psutil.NoSuchProcess:
            pass
        raise NotMeasured(f"the service, or a part of it, has ended: {self._last_line()}")

    def _get(self, port: int, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._ports[port]}{path}", timeout=60) as response:
            text: str = response.read().decode()
            return text

    def _wait_until_answered(self, port: int, path: str) -> None:
        deadline = time.perf_counter() + _START_SECONDS
        while True:
            with contextlib.suppress(OSError):
                self._get(port, path)
                return
            if self._process.poll() is not None or time.perf_counter() > deadline:
                raise NotMeasured(f"the service did not start: {self._last_line()}")
            time.sleep(0.01)

    def _last_line(self) -> str:
        return self._log.read_text(errors="replace").strip().split("\n")[-1][:300]

    def _family(self) -> list[psutil.Process]:
        parent = psutil.Process(self._process.pid)
        return [parent, *parent.children(recursive=True)]

    def _end(self) -> None:
        if self._process.poll() is None:
            family = self._family()
            self._process.send_signal(signal.SIGTERM)
            _, alive = psutil.wait_procs(family, timeout=_STOP_SECONDS)
            for each in alive:
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.kill()
            self._process.wait()
        self._folder.cleanup()
