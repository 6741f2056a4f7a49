"""The client as its users run it, against a service that answers as each image says."""

import io
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow.parquet as pq
import pytest

from service.client.command import main
from tests.client.fake_service import DIMENSION, FakeService
from tests.integration.service_process import wait_for

# Small parts, so that there are some before a run is over.
SCRIPT = "import sys; from service.client import command, job; job.PART_ROWS = 10; sys.exit(command.main(sys.argv[1:]))"
_ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


class Client:
    """`python -m service.client embed` with a service, a folder of images and an `--out` of its own."""

    def __init__(self, fake: FakeService, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._fake = fake
        self._folder = folder
        self._capsys = capsys
        self.out = folder / "embeddings.parquet"
        self.parts = Path(f"{self.out}.parts")

    def images(self, *scripts: str, name: str = "images") -> Path:
        """A folder with one image a script; an image's name is its number."""
        folder = self._folder / name
        (folder / "below").mkdir(parents=True)
        for number, script in enumerate(scripts):
            (folder / ("below" if number % 2 else "") / f"{number}.JPG").write_text(f"{script} #{number}")
        return folder

    def arguments(self, source: object, *more: object) -> list[str]:
        return ["embed", str(source), "--url", self._fake.url, "--out", str(self.out), *map(str, more)]

    def embed(self, source: object, *more: object) -> int:
        """The exit code."""
        return main(self.arguments(source, *more))

    def embed_list(self, names: str, *more: object) -> int:
        """As `embed`, with names on stdin."""
        with tempfile.TemporaryFile("w+") as stdin, mock.patch.object(sys, "stdin", stdin):
            stdin.write(names)
            stdin.seek(0)
            return self.embed("-", *more)

    def run(self, source: object, shell: str = "", **how: Any) -> subprocess.CompletedProcess[str]:
        """By itself, with what a shell does for it."""
        command = ["bash", "-c", f'"$@" {shell}', "bash", sys.executable, "-m", "service.client"]
        how = {"capture_output": True, "text": True, "errors": "surrogateescape", **how}
        run = [*command, *self.arguments(source)]
        return subprocess.run(run, cwd=self._folder, env=_ENVIRONMENT, check=False, **how)

    def start(self, source: object, *more: object, script: str = SCRIPT) -> subprocess.Popen[str]:
        """In the background."""
        run = [sys.executable, "-c", script, *self.arguments(source, *more)]
        return subprocess.Popen(run, cwd=self._folder, env=_ENVIRONMENT, stderr=subprocess.PIPE, text=True)

    def said(self) -> str:
        """What it has said since it was asked the last time."""
        return self._capsys.readouterr().err

    def rows(self, path: Path | None = None) -> Mapping[str, tuple[list[float], str | None]]:
        """Embedding and error by id; each id is there once."""
        rows = pq.read_table(path or self.out).to_pylist()
        assert len({row["id"] for row in rows}) == len(rows)
        return {row["id"]: (row["embedding"], row["error"]) for row in rows}

    def errors(self) -> dict[str, str]:
        return {name: error for name, (_, error) in self.rows().items() if error}

    def embeddings(self, path: Path | None = None) -> dict[int, list[float]]:
        rows = self.rows(path).items()
        return {int(Path(name).stem): embedding for name, (embedding, error) in rows if error is None}


def expected(count: int) -> dict[int, list[float]]:
    """The embeddings of so many images."""
    return {number: [float(number)] * DIMENSION for number in range(count)}


def write_shard(path: Path, *scripts: str, first: int = 0) -> Path:
    """A tar file with one image a script, and what tells of it, as large sets of images are shipped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as shard:
        for number, script in enumerate(scripts, first):
            add(shard, f"./{number}.jpg", f"{script} #{number}")
            add(shard, f"{number}.json", "{}")
    return path


def add(shard: tarfile.TarFile, name: str, text: str, headers: Mapping[str, str] | None = None) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.pax_headers = len(text), dict(headers or {})
    shard.addfile(member, io.BytesIO(text.encode()))


def when(condition: Callable[[], bool], act: Callable[[], None]) -> None:
    """Act beside the test, as soon as the condition holds."""

    def wait_and_act() -> None:
        wait_for(condition)
        act()

    threading.Thread(target=wait_and_act).start()
