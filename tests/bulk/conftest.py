"""What tests of the bulk job share."""

import contextlib
import signal
from pathlib import Path

import pytest

from service.bulk import cluster
from service.bulk.cluster import Shares
from service.bulk.command import main
from service.bulk.embedder import Embedder
from service.bulk.folder import Folder
from service.bulk.worker import Facts
from service.cores import Cores
from tests.bulk.lakes import ORIGIN, SETTINGS, Job, Run, drawing


@pytest.fixture(scope="session")
def embedder() -> Embedder:
    return Embedder(SETTINGS, Cores())


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    folder = tmp_path / "lake"
    (folder / "sub").mkdir(parents=True)
    for number in range(10):
        Path(folder, "sub" if number % 2 else "", f"{number}.jpg").write_bytes(drawing(number))
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Folder:
    return Folder.at(str(tmp_path / "out"))


@pytest.fixture
def job(lake: Path, out: Folder, embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setattr("service.bulk.worker._build", lambda *_: embedder)
    return Job(lake, out, embedder)


@pytest.fixture
def run(lake: Path, out: Folder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command on the lake, and a cluster that has one worker, whose embeddings are those of `ORIGIN`."""
    monkeypatch.setattr(cluster, "cluster", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(cluster, "divide", lambda *_: Shares(1, 1, 0))
    monkeypatch.setattr(cluster, "ask", lambda *_: Facts(ORIGIN.fingerprint, 1))
    monkeypatch.setattr(cluster, "work", lambda *_: ())
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return lambda *more, source=lake: (main([str(source), "--out", out.path, *more]), capsys.readouterr().err)
