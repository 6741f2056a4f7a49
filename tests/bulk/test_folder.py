"""Folders of this machine and of object stores: listed, read and written."""

import errno
import io
import os
import stat
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pytest

from service.bulk.folder import Folder
from service.bulk.plan import Plan
from service.bulk.reader import Reader
from service.client.listing import LeftOut
from service.client.locks import Busy
from tests.bulk.lakes import ORIGIN, planned, write_tar


def test_an_object_store_is_listed_and_read_like_a_local_folder(lake: Path, out: Folder) -> None:
    for other in ("notes.TXT", "sub/movie.mp4", "sub/more.txt"):
        (lake / other).touch()
    images = {f"{number}.jpg": str(number).encode() * 500 for number in range(300)}  # more than is listed at a time
    for number in range(40):
        write_tar(lake / "sub" / f"{number}.tar", {"./0.jpg": b"all of it"} if number else {**images, "0.json": b"{}"})
    # Not a LocalFileSystem any more, so listed as every other file system is.
    store = Folder(pa.fs.SubTreeFileSystem(str(lake.parent), pa.fs.LocalFileSystem()), "lake")
    local = Folder.at(lake.as_uri())
    assert local.is_local and not store.is_local
    names = {str(path.relative_to(lake)) for path in lake.rglob("*.jpg")}
    names |= {f"sub/{number}.tar/0.jpg" for number in range(40)} | {f"sub/0.tar/{name}" for name in images}
    infos = store.filesystem.get_file_info(pa.fs.FileSelector("lake", recursive=True))
    listed: Any = SimpleNamespace(get_file_info=lambda _: infos)
    assert len(list(Folder(listed, "lake")._walk((".jpg",), LeftOut()))) == 10
    assert not infos, "or what is listed of millions would be in memory beside their names"
    for folder in (store, local):
        left_out, reader, open_files = LeftOut(), Reader(folder), len(os.listdir("/proc/self/fd"))
        places = {place.name: place for place in folder.images(left_out)}
        assert places.keys() == names
        assert list(left_out.lines()) == ["4 files left out by their names: .txt 2, .mp4 1, .json 1"]
        assert reader.read(places["sub/1.jpg"], 2**20) == (lake / "sub/1.jpg").read_bytes()
        read = {name: reader.read(place, 500) for name, place in places.items() if place.file != place.name}
        assert [read.pop(f"sub/{number}.tar/0.jpg") for number in range(1, 40)] == [b"all of it"] * 39
        assert read == {f"sub/0.tar/{name}": data[:500] for name, data in images.items()}
        assert len(os.listdir("/proc/self/fd")) < open_files + 20, "of thousands of tar files few may stay open"


class _Store:
    """An object store that cannot move an object, as Azure's without hierarchical namespaces."""

    type_name = "abfs"

    def __init__(self) -> None:
        self._files = pa.fs.LocalFileSystem()

    def __getattr__(self, name: str) -> Any:
        if name == "move":
            raise NotImplementedError
        return getattr(self._files, name)


class _Counted(io.BytesIO):
    """A file that counts what is read of it."""

    def __init__(self, path: str, counts: list[int]) -> None:
        super().__init__(Path(path).read_bytes())
        self._counts = counts

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self._counts.append(len(data))
        return data


def test_of_a_tar_file_in_an_object_store_only_images_and_headers_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tar(tmp_path / "a.tar", {"0.bin": bytes(2**23), "1.jpg": b"first", "2.bin": bytes(2**23), "3.jpg": b"second"})
    opened: list[list[int]] = []

    def open_input_file(path: str) -> pa.NativeFile:
        opened.append([])
        return pa.PythonFile(_Counted(path, opened[-1]), "r")

    store = _Store()
    monkeypatch.setattr(store, "open_input_file", open_input_file)
    folder = Folder(store, str(tmp_path))
    reader, places = Reader(folder), list(folder.images(LeftOut()))
    (headers,) = opened
    assert len(headers) < 10 and sum(headers) < 2**22
    assert [reader.read(place, 2**20) for place in places] == [b"first", b"second"]
    assert opened == [headers, [5, 6]]


@pytest.mark.parametrize("size", [-512, 2**70])
def test_a_size_that_cannot_be_ends_no_more_than_its_tar_file(lake: Path, out: Folder, size: int) -> None:
    write_tar(lake / "a.tar", {"0.jpg": b"sound"})
    odd = tarfile.TarInfo("1.jpg")
    odd.size = size
    with open(lake / "a.tar", "r+b") as file:
        file.seek(1024)
        file.write(odd.tobuf(tarfile.GNU_FORMAT))
    left_out = LeftOut()
    assert Plan(out, str(lake), ORIGIN).extend(Folder.at(str(lake)).images(left_out), 4) == 11
    assert left_out.unlisted == [f"{lake}/a.tar: not a whole tar file: a member of {size} bytes"]


def test_one_run_at_a_time_writes_into_a_folder(out: Folder) -> None:
    with out.for_one_run(), pytest.raises(Busy), Folder.at(out.path).for_one_run():
        pass
    with out.for_one_run():
        pass


def test_an_object_store_that_cannot_move_objects_is_enough(tmp_path: Path) -> None:
    store = Folder(_Store(), str(tmp_path))
    table = pa.table({"id": ["a"]})
    store.write_table("0.parquet", table)
    assert store.tables() == ["0.parquet"] and store.open_table("0.parquet").read() == table


def test_a_folder_whose_names_cannot_be_kept_on_purpose_is_enough(
    out: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on file systems that know no fsync of a folder."""
    fsync = os.fsync

    def fail_at_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail_at_folders)
    out = Folder.at(str(tmp_path))
    out.write_table("0.parquet", pa.table({"id": ["a"]}))
    assert out.tables() == ["0.parquet"]


def test_what_killed_processes_have_left_unfinished_goes_with_the_next_run(lake: Path, out: Folder) -> None:
    planned(lake, out)
    left = [Path(folder.path, ".0000.parquet.0123.unfinished") for folder in (out, out.below("_plan"))]
    for path in left:
        path.touch()
    assert len(planned(lake, out).chunks) == 3
    assert not any(path.exists() for path in left)
