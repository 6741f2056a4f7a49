"""Rows as they are kept, whenever the run that keeps them ends."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from service.client.locks import Busy, locked
from service.client.results import open_results
from service.client.rows import Origin, Row

ORIGIN = Origin("0123", "embed_image", "False")


def test_the_latest_row_counts_wherever_the_end_of_a_run_has_been_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, unlink = tmp_path / "embeddings.parquet", Path.unlink
    removed: list[Path] = []

    def fail_at_the_second(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".parquet":
            removed.append(path)
            if len(removed) == 2:
                raise OSError("the disk is gone")
        unlink(path, missing_ok)

    with open_results(out, ORIGIN, 2) as results:
        results.write([Row("a", None, "corrupt_image: it is damaged")])
        results.write([Row("a", np.ones(2, np.float32), None)])
        monkeypatch.setattr(Path, "unlink", fail_at_the_second)
        with pytest.raises(OSError, match="the disk is gone"):
            results.finish()
    with open_results(out, ORIGIN, 2) as results:
        results.finish()
    assert pq.read_table(out).to_pylist() == [{"id": "a", "embedding": [1.0, 1.0], "error": None}]
    assert list(tmp_path.iterdir()) == [out]


def test_a_lock_that_a_killed_run_has_left_locks_nobody_out(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    path.touch()
    with locked(path, "x"), pytest.raises(Busy, match="another run is writing x"), locked(path, "x"):
        pass
    assert not path.exists()
