"""Rows as they are kept, whenever the run that keeps them ends."""

import contextlib
import errno
import io
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service.client.locks import Busy, locked
from service.client.results import CannotGoOn, open_results
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
        results.write([Row("a", np.ones(2, np.float32), None, 7)])
        monkeypatch.setattr(Path, "unlink", fail_at_the_second)
        with pytest.raises(OSError, match="the disk is gone"):
            results.finish()
    with open_results(out, ORIGIN, 2) as results:
        results.finish()
    assert pq.read_table(out).to_pylist() == [{"id": "a", "embedding": [1.0, 1.0], "error": None, "file_time": 7}]
    assert list(tmp_path.iterdir()) == [out]


def _row(name: str) -> Row:
    return Row(name, np.full(2, len(name), np.float32), None)


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("written", range(3))
def test_a_npy_its_ids_and_its_errors_stay_of_one_run_when_the_next_one_cannot_write_them_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    fsync, left = os.fsync, [None] * written

    def fail_in_the_end(descriptor: int) -> None:
        if not left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left.pop()
        fsync(descriptor)

    with open_results(tmp_path / "embeddings.npy", ORIGIN, 2) as results:
        results.write([_row("a"), Row("b", None, "corrupt_image: it is damaged")])
        results.finish()
        before = _contents(tmp_path)
        results.write([_row("ccc"), Row("dd", None, "corrupt_image: it is damaged")])
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail_in_the_end)
            with pytest.raises(OSError, match="No space left"):
                results.finish()
        assert _contents(tmp_path) == before and len(before) == 3
        results.finish()
        assert all(_contents(tmp_path)[name] != before[name] for name in before)


@pytest.mark.parametrize("exchanged", range(4))
def test_a_npy_never_stands_beside_the_ids_of_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanged: int
) -> None:
    """Not even as many: wherever a run is killed while its files take the places of the last one's."""
    out, exchange, left = tmp_path / "embeddings.npy", os.replace, [None] * exchanged

    def fail_in_the_end(*paths: Path) -> None:
        if not left:
            raise KeyboardInterrupt
        left.pop()
        exchange(*paths)

    with open_results(out, ORIGIN, 2) as results:
        results.write([_row("a"), _row("bb")])
        results.finish()
        results.write([_row("a")])  # its image has changed
        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr(os, "replace", fail_in_the_end)
            results.finish()
        ids = Path(f"{out}.ids.txt")
        assert not out.exists() or np.load(out)[:, 0].tolist() == [len(name) for name in ids.read_text().split()]
        results.finish()
    assert np.load(out)[:, 0].tolist() == [2, 1] and ids.read_text() == "bb\na\n"


@pytest.mark.parametrize("suffix", [".parquet", ".npy"])
def test_what_a_killed_run_has_left_makes_room_for_the_next_one(tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"embeddings{suffix}"
    beside = ("", ".ids.txt", ".errors.csv") if suffix == ".npy" else ("",)
    left = [tmp_path / f".{out.name}{end}.unfinished" for end in beside]
    left.append(tmp_path / f"{out.name}.parts" / ".00000007.parquet.unfinished")
    left[-1].parent.mkdir()
    for path in left:
        path.touch()
    with open_results(out, ORIGIN, 2):
        assert not any(path.exists() for path in left)


@pytest.mark.parametrize(("suffix", "most"), [(".parquet", 243), (".npy", 232)])
def test_a_name_too_long_is_told_before_anything_is_embedded(tmp_path: Path, suffix: str, most: int) -> None:
    name = suffix.rjust(most, "a")
    with pytest.raises(OSError, match="File name too long"), open_results(tmp_path / f"a{name}", ORIGIN, 2):
        pass
    with open_results(tmp_path / name, ORIGIN, 2) as results:
        results.write([_row("a")])
        results.finish()
    assert (tmp_path / name).exists()


def test_parts_that_cannot_be_listed_are_not_taken_for_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a ticket for NFS has expired: the next part would take the first one's place."""

    def fail(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with open_results(tmp_path / "embeddings.parquet", ORIGIN, 2) as results:
        results.write([_row("a")])
        for name in ("scandir", "listdir"):
            monkeypatch.setattr(os, name, fail)
        with pytest.raises(PermissionError):
            results.finish()


def test_of_many_parts_the_damaged_one_is_told(tmp_path: Path) -> None:
    with open_results(tmp_path / "embeddings.parquet", ORIGIN, 2) as results:
        for name in "ab":
            results.write([_row(name)])
        part = tmp_path / "embeddings.parquet.parts" / "00000001.parquet"
        content = part.read_bytes()
        part.write_bytes(content[:4] + bytes(60) + content[64:])
        for read in (lambda: results.known(False), results.finish):
            with pytest.raises(CannotGoOn, match=f"{part} cannot be read: "):
                read()


def test_what_is_kept_survives_a_power_failure_by_its_name_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, kept = tmp_path / "embeddings.parquet", list[int | set[str]]()

    def note(descriptor: int) -> None:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            kept.append({name for name in os.listdir(descriptor) if not name.startswith(".")})
            raise OSError(errno.EINVAL, "as some file systems do")
        kept.append(status.st_size)

    monkeypatch.setattr(os, "fsync", note)
    with open_results(out, ORIGIN, 2) as results:
        results.write([_row("a")])
        (part,) = Path(f"{out}.parts").glob("*.parquet")
        assert kept == [part.stat().st_size, {part.name}]
        results.finish()
    assert kept[2:] == [out.stat().st_size, {out.name, f"{out.name}.parts"}]


def test_values_are_read_once_for_a_npy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are nearly all of what there is."""
    read, columns = pq.ParquetFile.read_row_group, list[Sequence[str] | None]()

    def note_columns(file: Any, group: int, names: Sequence[str] | None = None) -> Any:
        columns.append(names)
        return read(file, group, names)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", note_columns)
    with open_results(tmp_path / "embeddings.npy", ORIGIN, 2) as results:
        results.write([_row("a")])
        results.finish()
    assert columns == [["id", "error"], None, ["id", "error"]]


@pytest.mark.parametrize("name", ["photos-08:15.parquet", os.fsdecode(b"caf\xe9/photos.parquet")])
def test_results_go_wherever_a_file_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Where Arrow opens it itself, one of these is an address with a protocol, and the other no text."""
    monkeypatch.chdir(tmp_path)
    for image_id in "ab":
        with open_results(Path(name), ORIGIN, 2) as results:
            results.write([_row(image_id)])
            results.finish()
    assert pq.read_table(io.BytesIO(Path(name).read_bytes()))["id"].to_pylist() == ["a", "b"]


def test_a_lock_that_a_killed_run_has_left_locks_nobody_out(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    path.touch()
    with locked(path, "x"), pytest.raises(Busy, match="another run is writing x"), locked(path, "x"):
        pass
    assert not path.exists()


@pytest.mark.parametrize("is_another_there", [False, True])
def test_nobody_takes_a_lock_that_its_run_has_removed_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_another_there: bool
) -> None:
    """Or two would write: this one, and the next one to make the file."""
    path, open_file = tmp_path / ".lock", os.open

    def open_too_late(*how: Any) -> int:
        descriptor = open_file(*how)
        path.unlink()
        if is_another_there:
            path.write_text("")
        return descriptor

    monkeypatch.setattr(os, "open", open_too_late)
    with pytest.raises(Busy), locked(path, "x"):
        pass


def _foreign_table() -> bytes:
    content = io.BytesIO()
    pq.write_table(pa.table({"id": ["a"]}), content)
    return content.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.npy", b"the work of a week", "is there, but not .* to go on from"),
        ("a.parquet", b"the work of a week", "is no parquet file"),
        ("a.parquet", _foreign_table(), "is of fingerprint unknown"),
    ],
)
def test_what_no_run_could_go_on_from_is_not_written_over(tmp_path: Path, name: str, content: bytes, why: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CannotGoOn, match=why), open_results(tmp_path / name, ORIGIN, 2):
        pass
    assert _contents(tmp_path) == {name: content}
