"""Results name the code that they were measured with."""

import subprocess
from pathlib import Path

import pytest

from perf import machine


def test_the_commit_is_dirty_by_code_and_not_by_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "REPOSITORY", tmp_path)
    assert machine.commit() == "unknown"
    (tmp_path / "perf" / "results").mkdir(parents=True)
    files = [tmp_path / name for name in ("code.py", "perf/README.md", "perf/results/here.json")]
    for file in files:
        file.write_text("before")
    identity = ["-c", "user.name=somebody", "-c", "user.email=somebody@example.org"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "all"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    clean = machine.commit()
    for file in files[1:]:
        file.write_text("after")
    assert machine.commit() == clean and "-" not in clean
    files[0].write_text("after")
    assert machine.commit() == f"{clean}-dirty"
