"""The ancestor's load test runs unchanged against the service, with default security."""

import csv
import subprocess
from pathlib import Path

import pytest

from perf.load.perf_analyzer import find_perf_analyzer
from tests.integration.reference import REPOSITORY
from tests.integration.service_process import ServiceProcess


@pytest.fixture
def perf_analyzer() -> str:
    """The path of a perf_analyzer that runs here."""
    path = find_perf_analyzer()
    if path is None:
        pytest.skip("no perf_analyzer that runs: set PERF_ANALYZER to one (pip install perf-analyzer, glibc 2.38)")
    return path


def test_the_load_test_of_the_ancestor_runs_unchanged(
    running: ServiceProcess, perf_analyzer: str, tmp_path: Path
) -> None:
    report = tmp_path / "report.csv"
    arguments = (
        "-m embed_image -i grpc --input-data perf/data/base64.json --bls-composing=siglip"
        f" --request-parameter=base64_encoded:true:bool -u 127.0.0.1:{running.grpc_port} -f {report}"
        " --concurrency-range 60 --measurement-mode count_windows --measurement-request-count 100"
        " --stability-percentage 999 --max-trials 3"
    )
    result = subprocess.run(
        [perf_analyzer, *arguments.split()], cwd=REPOSITORY, capture_output=True, text=True, timeout=240, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (row,) = csv.DictReader(report.read_text().splitlines())
    assert row["Concurrency"] == "60"
    assert float(row["Inferences/Second"]) > 0
