"""The bulk job on a Ray cluster of this machine, whose driver and one worker are killed while it runs.

`BULK_DRAWINGS=20000 python -m pytest -n0 -s tests/integration/test_ray.py` runs it on a larger lake.
"""

import contextlib
import os
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

from perf.embeddings import cosines
from service.bulk.embedder import Embedder
from service.cores import Cores
from service.demo.drawings import draw
from service.settings import load_settings
from tests.integration.service_process import wait_for

pytest.importorskip("ray", reason="Ray is not installed")

REPOSITORY = Path(__file__).parents[2]
DRAWINGS = int(os.environ.get("BULK_DRAWINGS", "600"))
PARTS = 30
FAULTY = {"empty.jpg": "empty_input", "gone.png": "unreadable", "sub/text.webp": "unsupported_format"}
LATE = 5
SHARD = "shard.tar"


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    """A folder of drawings in folders and in a tar file, and of what cannot be embedded."""
    folder = tmp_path / "lake"
    (folder / "sub").mkdir(parents=True)
    for number in range(DRAWINGS):
        _draw(folder / f"{'sub/' if number % 2 else ''}{number}.jpg", number)
    with tarfile.open(folder / "sub" / SHARD, "w") as shard:
        for path in sorted((folder / "sub").glob("*5.jpg")):
            shard.add(path, path.name)
            path.unlink()
    (folder / "empty.jpg").touch()
    (folder / "gone.png").symlink_to("nowhere")
    (folder / "sub" / "text.webp").write_text("no image")
    (folder / "notes.txt").write_text("no image either, and no row")
    return folder


def _draw(path: Path, seed: int) -> None:
    draw(np.random.default_rng(seed)).image.save(path, quality=90)


@contextlib.contextmanager
def _job(lake: Path, out: Path) -> Iterator[psutil.Popen]:
    """A run in the background; whatever is left of it at the end is killed."""
    options = ["--part-rows", str(DRAWINGS // PARTS), "--worker-cpus", "1", "--dtype", "float32"]
    # By URI, as an object store is named.
    command = [sys.executable, "-m", "service.bulk", lake.as_uri(), "--out", str(out), *options]
    with psutil.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True) as run:
        try:
            yield run
        finally:
            if run.is_running():
                _kill([run, *run.children(recursive=True)])


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _workers(run: psutil.Popen) -> list[psutil.Process]:
    """The processes that embed."""
    return [each for each in run.children(recursive=True) if each.name().startswith("ray::MapWorker")]


def _parts(out: Path) -> set[str]:
    return {path.name for path in out.glob("*.parquet")}


@pytest.mark.timeout(300 + DRAWINGS)
def test_every_image_has_one_row_after_its_driver_and_a_worker_were_killed(lake: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with _job(lake, out) as run:
        wait_for(lambda: bool(_parts(out)))
        workers, family = _workers(run), run.children(recursive=True)
        run.kill()
        assert workers and not psutil.wait_procs(workers, timeout=60)[1], "a killed run leaves no worker"
        _kill(family)  # two of Ray's own processes take a minute to notice
    before = {name: (out / name).stat().st_mtime_ns for name in _parts(out)}
    assert 0 < len(before) < PARTS
    for number in range(DRAWINGS, DRAWINGS + LATE):
        _draw(lake / f"{number}.jpg", number)

    with _job(lake, out) as run:
        wait_for(lambda: len(_parts(out)) > len(before))
        started, there = time.monotonic(), len(_parts(out))
        victim = _workers(run)[0]
        victim.kill()
        assert len(_parts(out)) < PARTS + 1
        said = run.communicate(timeout=200 + DRAWINGS)[1]
        seconds = time.monotonic() - started
    assert run.returncode == 1, said
    assert f"{DRAWINGS + LATE:,} embeddings; in this run" in said and "left out, as done in earlier runs" in said
    assert "\n1 files left out by their names: .txt 1\n" in said
    print(f"\n{len(_parts(out)) - there} parts in {seconds:.1f} s after a worker was killed\n{said}")
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before, "what was done is not done again"
    _check_rows(lake, out)


def _check_rows(lake: Path, out: Path) -> None:
    """Each image once, with the embedding that the pipeline itself makes of it, or the right error."""
    table = pq.read_table(out)
    rows = {row["id"]: row["error"] for row in table.select(["id", "error"]).to_pylist()}
    assert max(Counter(table["id"].to_pylist()).values()) == 1
    assert {name: error.partition(":")[0] for name, error in rows.items() if error} == FAULTY
    images = {str(path.relative_to(lake)): path.read_bytes() for path in lake.rglob("*.jpg") if path.stat().st_size}
    with tarfile.open(lake / "sub" / SHARD) as shard:
        for member in shard:
            images[f"sub/{SHARD}/{member.name}"] = shard.extractfile(member).read()  # type: ignore[union-attr]
    names = sorted(images)
    assert len(names) == DRAWINGS + LATE and rows.keys() == {*names, *FAULTY}
    embedder = Embedder(load_settings(["--dtype", "float32"]), Cores())
    assert table.schema.metadata[b"fingerprint"].decode() == embedder.fingerprint
    values = table["embedding"].combine_chunks().flatten().to_numpy().reshape(len(table), embedder.dimension)
    place = {name: number for number, name in enumerate(table["id"].to_pylist())}
    started = time.monotonic()
    expected = [
        outcome
        for start in range(0, len(names), 60)
        for outcome in embedder.embed([images[name] for name in names[start : start + 60]])
        if isinstance(outcome, np.ndarray)
    ]
    print(f"the pipeline alone, one batch at a time: {len(names) / (time.monotonic() - started):.0f} images/s")
    assert cosines(values[[place[name] for name in names]], np.stack(expected)).min() > 0.999999
    assert np.isnan(values[[place[name] for name in FAULTY]]).all()
