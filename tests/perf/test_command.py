"""`python -m perf` from the command line to the report."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from perf import command
from perf.command import main
from perf.findings import Findings, NotMeasured
from perf.results import FOLDER
from perf.rows import ROWS
from tests.integration.reference import REPOSITORY


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as a user gives it."""
    words = [sys.executable, "-W", "error::ResourceWarning", "-m", "perf", *arguments]
    return subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def test_a_quick_run_against_the_real_service_writes_samples_and_prints_no_figure(tmp_path: Path) -> None:
    result = run("--quick", "--client", "own", "--device", "cpu", "--output", str(tmp_path), "alone", "gpu-encoder")
    assert result.returncode == 0, result.stderr
    (path,) = tmp_path.glob("*.json")
    document = json.loads(path.read_text())
    alone = document["rows"]["alone"]
    assert [len(figure["samples"]) for figure in alone["findings"]["figures"]] == [1, 1]
    assert alone["conditions"]["rounds"] == 1 and "torch" in alone["conditions"]["versions"]
    assert document["rows"]["gpu-encoder"]["not_measured"] == "no CUDA device"
    report = path.with_suffix(".md").read_text()
    assert report.count("not enough samples (1 of 5 rounds)") == 2
    assert "not measured: no CUDA device" in report and report in result.stdout
    assert "[2 of 2] gpu-encoder" in result.stdout and "measurement" in result.stderr


def test_the_help_names_every_row_and_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["run", "--help"], ["--help"]):
        with pytest.raises(SystemExit, match="0"):
            main(arguments)
    shown = capsys.readouterr().out
    assert all(name in shown for name in (*ROWS, "load", "report"))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["no-such-row"], "there is no row 'no-such-row'"),
        (["load"], "the following arguments are required: --target"),
        (["--device", "cuda:99"], "device cuda:99 is not there"),
    ],
)
def test_a_wrong_command_line_is_refused(
    arguments: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--output", str(tmp_path)])
    assert complaint in f"{end.value} {capsys.readouterr().err}"


def test_what_gives_no_figure_takes_no_figures_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for arguments in ([], ["alone", "--rounds", "5"], ["soak"], ["replicas"]):
        assert command._parse(arguments).output == FOLDER
    for arguments in (["--quick"], ["alone", "--rounds", "4"], ["soak", "--minutes", "5"]):
        assert command._parse(arguments).output.parent == tmp_path


@pytest.mark.parametrize(("path", "client"), [("/bin/perf_analyzer", "perf_analyzer"), (None, "own")])
def test_results_name_the_client_that_auto_is(path: str | None, client: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_perf_analyzer", lambda: path)
    options = command._parse(["alone", "--device", "cpu"])
    with command._bench(options):
        assert options.client == client


@pytest.mark.parametrize(
    "reason", [NotMeasured("too slow"), ConnectionRefusedError("nobody listens"), psutil.NoSuchProcess(1)], ids=repr
)
def test_a_row_whose_service_has_gone_away_is_not_measured(reason: Exception) -> None:
    def measure() -> Findings:
        raise reason

    row = command._measure(measure, command._parse(["alone"]))
    assert (row.not_measured, row.findings) == (str(reason), Findings())


def test_the_readme_says_what_each_row_divides() -> None:
    readme = (REPOSITORY / "perf" / "README.md").read_text()
    assert all(f"| `{name}` |" in readme for name in ROWS)
