"""Results as they are kept, and as a reader sees them."""

import time
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from perf.findings import Figure, Findings, Table
from perf.report import write_readme, write_report
from perf.results import Results, Row, read_results
from perf.rows.running import stage_totals
from service.metrics import Metrics

TITLES = {
    name: (name.title(), f"what {name} is") for name in ("efficiency", "growth", "gpu-encoder", "start", "stages")
}
MACHINE = {"name": "box", "cpu": "Box", "cores": 2, "memory_gb": 8, "gpus": []}
CONDITIONS = {"date": "today", "commit": "abc", "versions": {"python": "3"}}


@pytest.fixture
def results() -> Results:
    """A row that is measured, one of too few rounds, one that is not measured, and one that never ran."""
    levels = {
        level: {"images/s": [rate] * 5, "p50 ms": [9.0] * 5, "p99 ms": [9.5] * 5}
        for level, rate in (("1", 90.0), ("60", 1234.5))
    }
    stages = {"decode": {"ms": [4.0] * 5}}
    rows = {
        "efficiency": Findings(
            [Figure("raw | HTTP", "ratio", [9.0] * 5, [10.0] * 5, at_least=0.95, note="9 / 10 images/s")]
        ),
        "growth": Findings(
            [Figure("60", "ratio", [2.0] * 4, [1.0] * 4, at_least=0.95)], [Table("levels", "in flight", levels)]
        ),
        "stages": Findings(tables=[Table("times", "stage", stages)], notes=["A note."]),
    }
    kept = {name: Row(CONDITIONS, findings) for name, findings in rows.items()}
    return Results(MACHINE, {**kept, "gpu-encoder": Row(CONDITIONS, Findings(), "no CUDA device")})


def test_results_are_read_as_they_were_written(results: Results, tmp_path: Path) -> None:
    results.save(tmp_path)
    assert read_results(tmp_path / "box.json") == results


def test_the_report_has_figures_tables_plots_and_reasons(results: Results, tmp_path: Path) -> None:
    text = write_report(results, tmp_path, TITLES).read_text()
    assert "| Efficiency | raw \\| HTTP | at least 0.95 | **0.9 (0.9 to 0.9)** | 9 / 10 images/s |" in text
    assert "| Growth | 60 | at least 0.95 | not enough samples (4 of 5 rounds) |  |" in text
    assert "| Gpu-Encoder |  |  | not measured: no CUDA device |  |" in text
    assert "Not run there: Start." in text
    assert "| 60 | 1234 (1234 to 1234) | 9 (9 to 9) | 9.5 (9.5 to 9.5) |" in text
    assert "A note." in text and "Not measured: no CUDA device" in text
    assert sorted(path.name for path in tmp_path.glob("*.svg")) == ["box-growth.svg", "box-stages.svg"]
    for path in tmp_path.glob("*.svg"):
        assert f"![{path.name}]({path.name})" in text


def test_the_same_results_give_the_same_files(results: Results, tmp_path: Path) -> None:
    written = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        results.save(folder)
        write_report(results, folder, TITLES)
        written.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert written[0] == written[1]


def test_the_readme_opens_with_the_results_of_all_machines_side_by_side(results: Results, tmp_path: Path) -> None:
    folder, readme = tmp_path / "results", tmp_path / "README.md"
    figures = [Figure("raw | HTTP", "exact", [7.0], at_most=8.0, unit="ms"), Figure("beside it", "exact", [5.0])]
    machine = {**MACHINE, "name": "card", "cpu": "Intel(R) Xeon(R) Processor with AVX512", "gpus": ["NVIDIA H200"]}
    later = Results(machine, {"efficiency": Row({**CONDITIONS, "date": "tomorrow"}, Findings(figures))})
    for each in (results, later):
        each.save(folder)
        write_report(each, folder, TITLES)
    readme.write_text("# Top\n<!-- results -->\nold\n<!-- /results -->\nrest\n")
    for _ in range(2):
        write_readme(folder, TITLES)
        assert readme.read_text().splitlines() == [
            "# Top",
            "<!-- results -->",
            "- Xeon AVX512, 2 cores, H200: Intel(R) Xeon(R) Processor with AVX512, 2 cores, 8 GB, NVIDIA H200",
            "- Box, 2 cores: Box, 2 cores, 8 GB, no GPU",
            "",
            "| row | figure | target (missed: **bold**) | [Xeon AVX512, 2 cores, H200](results/card.md)"
            " | [Box, 2 cores](results/box.md) |",
            "| --- | --- | --- | --- | --- |",
            "| Efficiency | raw \\| HTTP | at most 8 ms; at least 0.95 | 7 ms | **0.9 (0.9 to 0.9)** |",
            "| Efficiency | beside it |  | 5 | - |",
            "| Growth | 60 | at least 0.95 | - | not enough samples (4 of 5 rounds) |",
            # Tried in vain, and never run; that of stages has no target.
            "| Gpu-Encoder |  |  | - | - |",
            "| Start |  |  | - | - |",
            "",
            "![box-growth](results/box-growth.svg)",
            "![box-stages](results/box-stages.svg)",
            "<!-- /results -->",
            "rest",
        ]


def test_stages_are_read_from_what_the_service_exposes() -> None:
    metrics = Metrics()
    for _ in range(2):
        with metrics.stage("decode"):
            time.sleep(0.01)
    totals = stage_totals(generate_latest(metrics.registry).decode())
    assert set(totals) == {"decode", "resize", "encode"}
    assert totals["decode"] >= 0.02 and totals["encode"] == 0
