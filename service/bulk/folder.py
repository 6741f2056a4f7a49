"""A folder of this machine or of an object store, by one interface: list images, read files, keep Parquet.

Comes in: a path, or a URI that Arrow knows (`s3://`, `gs://`, `abfs://`, `hdfs://`, `file://`). Goes out: names, bytes
and tables. It must not know what is in them.
"""

import contextlib
import os
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from service.client.locks import locked
from service.client.sources import SUFFIXES, LeftOut, has_entries, walk

# In these, a file appears when it is complete, as an object. Not all of them can move one.
_OBJECT_STORES = ("s3", "gcs", "abfs")


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
        filesystem, path = pa.fs.FileSystem.from_uri(where if "://" in where else os.path.abspath(where))
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

    def images(self, left_out: LeftOut) -> Iterator[str]:
        """Names of all images below, relative to the folder; `left_out` gets to know what else is there.

        Raises:
            OSError: an object store cannot be listed.
        """
        if self.is_local:
            # As the client: a link is no folder, and names are bytes.
            yield from walk(self.path, SUFFIXES, left_out)
            return
        for info in self.filesystem.get_file_info(pa.fs.FileSelector(self.path, recursive=True)):
            if info.is_file and info.path.lower().endswith(SUFFIXES):
                yield info.path[len(self.path) + 1 :]
            elif info.is_file:
                left_out.count(info.base_name)

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
        self.filesystem.delete_file(f"{self.path}/{name}")

    def clear(self) -> None:
        """Have no files right in the folder; raises OSError."""
        for name in self.names():
            self.remove(name)

    def read(self, name: str, most: int) -> bytes:
        """A file's first bytes, at most so many.

        Raises:
            OSError, ValueError: it cannot be read, or has a name that Arrow does not take.
        """
        with self.filesystem.open_input_stream(f"{self.path}/{name}") as stream:
            data: bytes = stream.read(most)
            return data

    def open_table(self, name: str) -> pq.ParquetFile:
        """A Parquet file whose footer has been read.

        Raises:
            OSError, ArrowException: it cannot be read.
        """
        return pq.ParquetFile(self.filesystem.open_input_file(f"{self.path}/{name}"))

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
                _keep(f"{self.path}/{unfinished}")
            self.filesystem.move(f"{self.path}/{unfinished}", f"{self.path}/{name}")
            if self.is_local:
                _keep(self.path)  # the name
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


def _keep(path: str) -> None:
    """Have a file survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def metadata_of(schema: pa.Schema) -> Mapping[str, str]:
    """A table's own metadata as text, without Arrow's."""
    return {name.decode(): value.decode() for name, value in (schema.metadata or {}).items()}
