"""A run leaves no files, and those of a run that was killed are removed by the next one."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.process.workspace import SHARED_MEMORY, new_workspace
from tests.limits import open_files

RUN = """
import sys, time
from service.process.workspace import SHARED_MEMORY, new_workspace
with new_workspace() as folder:
    (folder / "model").write_text("weights")
    (SHARED_MEMORY / f"{folder.name}-stub").write_text("requests")
    print(folder.name, flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    return tmp_path


def _traces(temporary: Path, name: str) -> set[str]:
    """What there is of a run, with and without the dot that its folders begin with."""
    found = [*temporary.rglob("*"), *SHARED_MEMORY.rglob("*")]
    return {path.name for path in found if name.split("-", 1)[1] in str(path)}


def test_only_what_killed_runs_have_left_is_removed(temporary: Path) -> None:
    names = []
    with (
        subprocess.Popen([sys.executable, "-c", RUN], stdout=subprocess.PIPE, text=True) as killed,
        subprocess.Popen([sys.executable, "-c", RUN], stdout=subprocess.PIPE, text=True) as living,
    ):
        for process in (killed, living):
            assert process.stdout
            names.append(process.stdout.readline().strip())
        traces = [{name, "model", f"{name}-stub"} for name in names]
        assert [_traces(temporary, name) for name in names] == traces
        killed.kill()
        killed.wait()
        with new_workspace() as folder:
            assert [_traces(temporary, name) for name in names] == [set(), traces[1]]
            assert os.listdir(folder) == []
        living.kill()


def test_what_cannot_be_removed_keeps_nothing_else(temporary: Path) -> None:
    """Another user may make something of such a name in a folder that is everybody's."""
    with new_workspace() as folder:
        others = [SHARED_MEMORY / f"{folder.name}-{name}" for name in ("0", "1", "2")]
        for segment in others:
            segment.touch()
        others[1].unlink()
        others[1].mkdir()
    try:
        assert _traces(temporary, folder.name) == {others[1].name}
    finally:
        others[1].rmdir()


def test_nothing_is_left_at_the_end_whatever_ended_it(temporary: Path) -> None:
    with pytest.raises(KeyboardInterrupt), new_workspace() as folder:
        (SHARED_MEMORY / f"{folder.name}-stub").touch()
        raise KeyboardInterrupt
    assert not _traces(temporary, folder.name)


def test_what_ended_a_run_is_told_also_where_its_files_cannot_be_removed(
    temporary: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(KeyboardInterrupt), contextlib.ExitStack() as stack, new_workspace() as folder:
        stack.enter_context(open_files(0))  # each open() fails with EMFILE
        raise KeyboardInterrupt
    assert folder.is_dir() and caplog.messages[-1].endswith("Too many open files")
    with new_workspace():
        assert not _traces(temporary, folder.name)


def test_what_looks_like_a_run_but_is_none_stays(temporary: Path) -> None:
    """A user's own folder may be called embed-photos."""
    for folder in ("embed-photos", "embed-1", "embed-1-results", "embed-1-0123abcd-2", "my-embed-1-0123abcd"):
        (temporary / folder).mkdir()
    for file in ("embed-photos/holiday.jpg", "embed-photos-2.tar", "embed-1-00000001"):
        (temporary / file).touch()
    (temporary / "embed-1-00000002").symlink_to(temporary / "embed-photos")
    before = set(temporary.rglob("*"))
    with new_workspace():
        pass
    assert set(temporary.rglob("*")) == before
