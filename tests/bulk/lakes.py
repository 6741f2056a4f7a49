"""Lakes of drawings, and without Ray what is planned and embedded of them, and what goes wrong there."""

import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from ray.exceptions import RayError, RayTaskError

from service.bulk.embedder import Embedder
from service.bulk.folder import Folder
from service.bulk.plan import Chunk, Plan
from service.bulk.worker import Site, Worker
from service.client.listing import LeftOut, id_of
from service.client.rows import Origin
from service.demo.drawings import draw
from service.settings import Settings, load_settings

SETTINGS = load_settings(["--dtype", "float32", "--max-batch-size", "4", "--max-image-bytes", "100000"])
# The command's exit code and what it said; of other arguments than the source's name and `--out`.
Run = Callable[..., tuple[int, str]]
ORIGIN = Origin("0123456789abcdef", "embed_image", "False")


def drawing(seed: int) -> bytes:
    content = io.BytesIO()
    draw(np.random.default_rng(seed)).image.save(content, "jpeg")
    return content.getvalue()


def write_tar(path: Path, members: Mapping[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def planned(lake: Path, out: Folder, origin: Origin = ORIGIN) -> Plan:
    plan, source = Plan(out, id_of(str(lake)), origin), Folder.at(str(lake))
    plan.extend(source.images(LeftOut()), part_rows=4)
    return plan


def dealt(chunk: Chunk, to_do: int | None = None, again: bool = False) -> dict[str, Any]:
    """A chunk as a worker gets it, by itself with all of it to do."""
    return {**chunk._asdict(), "to_do": chunk.images if to_do is None else to_do, "again": again}


def ray_error(cause: Exception) -> RayError:
    """One of a worker, to whose message Ray adds what it likes."""
    fault: Any = RayTaskError  # which has no types
    error: RayError = fault("submit", "Traceback of several processes", cause)
    return error


class Job:
    """A lake's images are embedded by workers with one embedder; that each makes its own, test_ray.py holds."""

    def __init__(self, lake: Path, out: Folder, embedder: Embedder, settings: Settings = SETTINGS) -> None:
        self.lake = lake
        self.out = out
        self.origin = Origin(embedder.fingerprint, "embed_image", str(settings.default_normalize))
        self._embedder = embedder
        self._settings = settings

    def plan(self) -> Plan:
        return planned(self.lake, self.out, self.origin)

    def worker(self, origin: Origin | None = None, source: Folder | None = None) -> Worker:
        return Worker(self._settings, 1, Site(source or Folder.at(str(self.lake)), self.out, origin or self.origin))

    def work(self, again: bool = False, plan: Plan | None = None) -> list[dict[str, Any]]:
        """Embed all chunks of a plan, or of a new one, with a worker of its own, as Ray would deal them."""
        worker, plan = self.worker(), plan or self.plan()
        todo = plan.to_do(plan.failed(), again)
        return [worker(dealt(chunk, todo.get(chunk, 0), again)) for chunk in plan.chunks]

    def images(self) -> dict[str, bytes]:
        """What files there are, by their names."""
        return {str(path.relative_to(self.lake)): path.read_bytes() for path in self.lake.rglob("*.jpg")}

    def rows(self) -> dict[str, tuple[list[float], str | None]]:
        rows = pq.read_table(self.out.path).to_pylist()
        assert len({row["id"] for row in rows}) == len(rows)
        return {row["id"]: (row["embedding"], row["error"]) for row in rows}

    def errors(self) -> dict[str, str]:
        return {name: error for name, (_, error) in self.rows().items() if error}

    def assert_embedded(self, images: Mapping[str, bytes]) -> None:
        """These and no others, each under its name."""
        rows = {name: embedding for name, (embedding, error) in self.rows().items() if not error}
        assert rows.keys() == images.keys()
        for name, outcome in zip(images, self._embedder.embed(list(images.values())), strict=True):
            assert isinstance(outcome, np.ndarray) and rows[name] == pytest.approx(outcome.tolist(), abs=1e-4)
