"""NVIDIA's perf_analyzer as the load generator: gRPC, fixed windows of time, its CSV report."""

import base64
import csv
import json
import os
import resource
import shutil
import subprocess
import time
from pathlib import Path

from perf import images
from perf.load.client import Load, LoadResult
from perf.load.protocols import Target, with_length
from perf.photographs import INPUT_NAME

# It averages the last three windows.
_WINDOWS = 3
# Its asynchronous form costs the machine a third less than a thread a request.
_OPTIONS = (
    f"-i grpc --async --measurement-mode time_windows --stability-percentage 999 --max-trials {_WINDOWS}"
).split()


def find_perf_analyzer() -> str | None:
    """The path of a perf_analyzer that runs here: `PERF_ANALYZER` in the environment, or the one on PATH."""
    path = os.environ.get("PERF_ANALYZER") or shutil.which("perf_analyzer")
    if path is None or subprocess.run([path, "--version"], capture_output=True, check=False).returncode:
        return None
    return path


class PerfAnalyzer:
    """Loads KServe targets over gRPC; `folder` is for its input data and reports."""

    def __init__(self, path: str, folder: Path) -> None:
        self._path = path
        self._folder = folder

    def measure(self, target: Target, load: Load) -> LoadResult:
        """Put the load on a `kserve-grpc` or `kserve-grpc-base64` target; `repeated` is not for it."""
        as_base64 = target.protocol == "kserve-grpc-base64"
        report = self._folder / "report.csv"
        command = [self._path, *_OPTIONS, "-m", target.model, "-u", target.url, "-f", str(report)]
        command += ["--input-data", str(self._input_data(as_base64)), "--concurrency-range"]
        # It counts from the first request on. A level of one request fewer comes first, and its load stays up for the
        # next level, which then is at full load from the start; its own warm-up requests would end before it counts.
        command += [f"{max(1, load.in_flight - 1)}:{load.in_flight}"]
        command += ["--measurement-interval", str(round(load.seconds * 1000 / _WINDOWS))]
        command += ["--request-parameter=base64_encoded:true:bool"] * as_base64
        started, cpu = time.perf_counter(), _children_cpu_seconds()
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        client_cores = (_children_cpu_seconds() - cpu) / (time.perf_counter() - started)
        if run.returncode:
            message = (run.stderr.strip() or run.stdout.strip()).split("\n")[-1]
            nothing = float("nan")
            return LoadResult(nothing, nothing, nothing, {f"perf_analyzer: {message}"[:200]: 1}, client_cores)
        rows = csv.DictReader(report.read_text().splitlines())
        (row,) = (row for row in rows if row["Concurrency"] == str(load.in_flight))
        p50, p99 = (float(row[f"{name} latency"]) / 1000 for name in ("p50", "p99"))
        return LoadResult(float(row["Inferences/Second"]), p50, p99, {}, client_cores)

    def _input_data(self, as_base64: bool) -> Path:
        path = self._folder / f"images-{as_base64}.json"
        if not path.exists():
            rows = [_input_row(image, as_base64) for image in images.workload()]
            path.write_text(json.dumps({"data": [{INPUT_NAME: row} for row in rows]}))
        return path


def _input_row(image: bytes, as_base64: bool) -> list[str] | dict[str, str]:
    """Text as it is; bytes as the packed tensor, in base64 for JSON's sake."""
    if as_base64:
        return [base64.b64encode(image).decode()]
    return {"b64": base64.b64encode(with_length(image)).decode()}


def _children_cpu_seconds() -> float:
    """Processor time of all ended child processes."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
