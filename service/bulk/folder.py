"""A folder of this machine or of an object store, by one interface: list images, keep Parquet.

Comes in: a path, or a URI that Arrow knows (`s3://`, `gs://`, `abfs://`, `hdfs://`, `file://`). Goes out: places and
tables. It must not know what is in them.
"""

import contextlib
import errno
import io
import os
import uuid
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from service.client.files import keep, keep_names
from service.client.listing import SUFFIXES, TAR, LeftOut, Place, Stamp, has_entries, places_in, stamp_of, walk
from service.client.locks import locked

# In these, a file appears when it is complete, as an object. Not all of them can move one.
_OBJECT_STORES = ("s3", "gcs", "abfs")
# Tar files that are listed at a time, and images of one that wait until those of the others are taken.
_LISTED = 32
_SLICE = 100
# What is read of a tar file at a time to list it: the next header, and small files between two images. An object store
# sends more in the time that it takes to answer.
_HEADER_BYTES = 2**14
_HEADER_BYTES_OF_A_STORE = 2**18

_Listing = tuple[Iterator[Place], LeftOut]


@dataclass(frozen=True)
class Folder:
    """A place in a file system; it can be sent to other processes, which find credentials where they are.

    Attributes:
        filesystem: of Arrow.
        path: in it, without a slash at the end.
    """

    filesystem: pa.fs.FileSystem
    path: str

    @classmethod
    def at(cls, where: str) -> "Folder":
        """A folder by its path or URI, which need not be there.

        Raises:
            OSError, ArrowException: it is no such URI, or its store cannot be reached.
        """
        if "://" not in where:  # and Arrow itself takes no path whose bytes are no text
            return cls(pa.fs.LocalFileSystem(), os.path.abspath(where))
        filesystem, path = pa.fs.FileSystem.from_uri(where)
        return cls(filesystem, path.rstrip("/"))

    @property
    def is_local(self) -> bool:
        """Whether it is in this machine's own file system."""
        return isinstance(self.filesystem, pa.fs.LocalFileSystem)

    def below(self, name: str) -> "Folder":
        """A folder in this one."""
        return Folder(self.filesystem, f"{self.path}/{name}")

    def is_there(self) -> bool:
        """Whether it can be looked at, and is no empty folder where something was mounted."""
        if self.is_local:
            return has_entries(self.path)
        try:
            return bool(self.filesystem.get_file_info(self.path).type != pa.fs.FileType.NotFound)
        except OSError:
            return False

    def images(self, left_out: LeftOut) -> Iterator[Place]:
        """All images below, by names relative to the folder; `left_out` gets to know what else is there.

        Raises:
            OSError: an object store cannot be listed.
        """
        tars = []
        # On this machine as the client: a link is no folder, and names are bytes.
        suffixes = (*SUFFIXES, TAR)
        names = walk(self.path, suffixes, left_out) if self.is_local else self._walk(suffixes, left_out)
        for name in names:
            if name.lower().endswith(TAR):
                tars.append(name)
            else:
                yield Place(name, name)
        yield from self._in_tars(tars, left_out)

    def _walk(self, suffixes: tuple[str, ...], left_out: LeftOut) -> Iterator[str]:
        infos = self.filesystem.get_file_info(pa.fs.FileSelector(self.path, recursive=True))
        while infos:
            info = infos.pop()  # or all of them would be in memory beside all names
            if info.is_file and info.path.lower().endswith(suffixes):
                yield info.path[len(self.path) + 1 :]
            elif info.is_file:
                left_out.count(info.base_name)

    def _in_tars(self, names: Iterable[str], left_out: LeftOut) -> Iterator[Place]:
        """What tar files hold, many listed at a time and each by slices: a store answers late, and some hold much."""
        listings = map(self._in_tar, names)
        with ThreadPoolExecutor(_LISTED, thread_name_prefix="list") as threads:

            def go_on(listing: _Listing) -> tuple[_Listing, Future[list[Place]]]:
                return listing, threads.submit(lambda: list(islice(listing[0], _SLICE)))

            under_way = deque(map(go_on, islice(listings, _LISTED)))
            while under_way:
                listing, found = under_way.popleft()
                if found.result():
                    under_way.append(go_on(listing))
                    yield from found.result()
                else:
                    left_out.add(listing[1])
                    under_way.extend(map(go_on, islice(listings, 1)))

    def _in_tar(self, name: str) -> "_Listing":
        told = LeftOut()  # its own, as threads cannot count together
        return places_in(name, f"{self.path}/{name}", self._opened(name), told, set()), told

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[tuple[BinaryIO, Stamp]]:
        stamp = self.stamp(name)  # first, or it could be of what comes after what is read
        with self.filesystem.open_input_file(self.path_of(name)) as file:
            size = _HEADER_BYTES if self.is_local else _HEADER_BYTES_OF_A_STORE
            yield cast(BinaryIO, io.BufferedReader(file, size)), stamp

    def path_of(self, name: str) -> str | bytes:
        """A file's path as Arrow takes it: on this machine, names are bytes."""
        path = f"{self.path}/{name}"
        return os.fsencode(path) if self.is_local else path

    def stamp(self, name: str) -> Stamp:
        """What differs when a file has been written anew: its size in bytes, and its time in nanoseconds.

        Raises:
            OSError, ValueError: it is not there, or nobody can tell.
        """
        if self.is_local:
            return stamp_of(os.stat(self.path_of(name)))
        info = self.filesystem.get_file_info(f"{self.path}/{name}")
        if not info.is_file:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        return info.size, info.mtime_ns

    def names(self, start: str = "") -> list[str]:
        """Names of the files right in the folder that start so, in order; none where there is no folder.

        Raises:
            OSError: it cannot be listed.
        """
        selector = pa.fs.FileSelector(self.path, allow_not_found=True)
        names = (info.base_name for info in self.filesystem.get_file_info(selector) if info.is_file)
        return sorted(name for name in names if name.startswith(start))

    def tables(self) -> list[str]:
        """Names of the Parquet files right in the folder, in order, without unfinished ones; raises as `names`."""
        return [name for name in self.names() if name.endswith(".parquet")]

    def touch(self, name: str) -> None:
        """Have an empty file; raises OSError."""
        self.filesystem.create_dir(self.path, recursive=True)
        self.filesystem.open_output_stream(f"{self.path}/{name}").close()

    def remove(self, name: str) -> None:
        """Have a file no more; raises OSError."""
        with contextlib.suppress(FileNotFoundError):  # two workers may have the same chunk
            self.filesystem.delete_file(f"{self.path}/{name}")

    def clear(self) -> None:
        """Have no files right in the folder; raises OSError."""
        for name in self.names():
            self.remove(name)

    def tidy(self) -> None:
        """Remove what killed processes have left of tables, where no other run can be writing; raises OSError."""
        for path in Path(self.path).glob(".*.unfinished") if self.is_local else ():
            path.unlink(missing_ok=True)

    def open_table(self, name: str) -> pq.ParquetFile:
        """A Parquet file whose footer has been read.

        Raises:
            OSError: it cannot be read, which names it.
        """
        path = f"{self.path}/{name}"
        try:
            return pq.ParquetFile(self.filesystem.open_input_file(path))
        except (OSError, pa.ArrowException) as error:
            raise OSError(f"{path} cannot be read: {error}") from error

    def write_table(self, name: str, table: pa.Table, **options: Any) -> None:
        """A Parquet file that appears whole or not at all, also where two processes write it at the same time.

        Raises:
            OSError: it cannot be written.
        """
        self.filesystem.create_dir(self.path, recursive=True)
        content = pa.BufferOutputStream()
        pq.write_table(table, content, **options)
        if self.filesystem.type_name in _OBJECT_STORES:
            self._put(name, content.getvalue())
            return
        # A name with a dot, which those who read all of a folder pass over.
        unfinished = f".{name}.{uuid.uuid4().hex}.unfinished"
        try:
            self._put(unfinished, content.getvalue())
            if self.is_local:
                keep(Path(self.path, unfinished))
            self.filesystem.move(f"{self.path}/{unfinished}", f"{self.path}/{name}")
            if self.is_local:
                keep_names(Path(self.path))
        except BaseException:
            with contextlib.suppress(OSError):
                self.remove(unfinished)  # or it would keep a full disk full
            raise

    def _put(self, name: str, content: pa.Buffer) -> None:
        stream = self.filesystem.open_output_stream(f"{self.path}/{name}")
        stream.write(content)
        stream.close()  # not where writing has failed: it makes an object of what is there

    @contextlib.contextmanager
    def for_one_run(self) -> Iterator[None]:
        """Keep other runs out of a local folder; object stores have no locks.

        Raises:
            Busy: another run is in it.
            OSError: it cannot be made.
        """
        self.filesystem.create_dir(self.path, recursive=True)
        with locked(Path(self.path, ".lock"), self.path) if self.is_local else contextlib.nullcontext():
            yield
