"""What came of each image, kept so that a run can be killed at any time and go on later.

Comes in: rows of id and embedding or error. Goes out: one parquet file, or a .npy with its ids and errors beside it. It
must not know where rows come from.

Rows are first written to numbered parquet files in `OUT.parts`, each whole or not at all, and put together at the end:
a parquet file without its end cannot be read, so one file that grows would be lost with its process. Parts can be read
before the end: `pyarrow.parquet.read_table("OUT.parts")`. Of several rows with one id the latest counts. Beside a .npy
the parts stay, for the next run to go on from.
"""

import codecs
import contextlib
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from service.client.files import replace, unfinished
from service.client.locks import locked
from service.client.rows import FORMAT, Origin, Row, schema_of, table_of

PART_ROWS = 10_000
_FOLDER = b"folder"
_TIME = "file_time"


class CannotGoOn(Exception):
    """What is there is nothing to go on from. `str(error)` is one line that says why."""


class Outcomes(NamedTuple):
    """Of all rows that count: for each id the number of its source, and the errors of those that failed."""

    source_of: dict[str, int]
    errors: dict[str, str]

    @property
    def embedded(self) -> int:
        return len(self.source_of) - len(self.errors)


@contextlib.contextmanager
def open_results(out: Path, origin: Origin, dimension: int, folder: str = "") -> Iterator["Results"]:
    """The results at `out`, for one run at a time, to go on from what is there.

    Args:
        folder: the path that ids are relative to, as text; empty where they are names as they were given.

    Raises:
        CannotGoOn: it has another origin, or ids of another folder, or cannot be read.
        Busy: another run is writing it.
        OSError: as for any file.
    """
    parts = Path(f"{out}.parts")
    parts.mkdir(parents=True, exist_ok=True)
    try:
        # Two runs would write the same parts.
        with locked(parts / ".lock", out):
            yield Results(out, parts, origin, dimension, folder)
    finally:
        with contextlib.suppress(OSError):  # it is not empty, be it for the lock of another run
            parts.rmdir()


class Results:
    """The rows of one `--out`, of this run and of earlier ones."""

    def __init__(self, out: Path, parts: Path, origin: Origin, dimension: int, folder: str) -> None:
        """Check what is there; raises CannotGoOn."""
        self._out = out
        self._parts = parts
        self._is_npy = out.suffix == ".npy"
        self._files = [out, *(Path(f"{out}.{name}") for name in ("ids.txt", "errors.csv") if self._is_npy)]
        self._dimension = dimension
        folder = self._check(origin, folder)
        # What killed runs have left. That a name is too long shows here, too, and not when all is embedded.
        for left in (*parts.glob(".*.unfinished"), *map(unfinished, self._files)):
            left.unlink(missing_ok=True)
        schema = schema_of(origin, dimension).append(pa.field(_TIME, pa.int64()))
        self._schema = schema.with_metadata({**schema.metadata, _FOLDER: folder})
        self._next_part = 1 + max((int(part.stem) for part in self._part_files()), default=-1)

    def known(self, without_failed: bool) -> dict[str, int | None]:
        """The ids that are there, each with the time of its file, as far as that is known."""
        known: dict[str, int | None] = {}
        for _, table in self._tables(["id", "error", _TIME]):
            for image_id, error, time in zip(*(column.to_pylist() for column in table.columns), strict=True):
                if without_failed and error is not None:
                    known.pop(image_id, None)
                else:
                    known[image_id] = time
        return known

    def write(self, rows: Sequence[Row]) -> None:
        """A part of these rows, at least one; when it returns, they survive whatever happens."""
        table = table_of(rows, self._schema)
        path = self._parts / f"{self._next_part:08d}.parquet"
        self._next_part += 1
        replace({path: lambda file: pq.write_table(table, file, **FORMAT)})

    def finish(self) -> Outcomes:
        """Put all rows together at `--out`."""
        outcomes = self._outcomes()
        if self._is_npy:
            self._write_npy(outcomes)
        elif self._part_files():
            replace({self._out: lambda file: self._write_parquet(file, outcomes)})
            for path in self._part_files():  # the oldest first: should this be the end, still the latest row counts
                path.unlink()
        return outcomes

    def _check(self, origin: Origin, folder: str) -> str:
        """The folder that ids are relative to, also where only what is there tells; CannotGoOn where they differ."""
        if self._is_npy and self._out.exists() and not self._part_files():
            raise CannotGoOn(f"{self._out} is there, but not {self._parts} to go on from; choose another --out")
        for path in self._sources():
            try:
                with path.open("rb") as file:  # Arrow itself would take a name with a colon for a URI
                    metadata = pq.read_schema(file).metadata or {}
            except pa.ArrowException as error:
                raise CannotGoOn(f"{path} is no parquet file: {error}") from error
            if (found := Origin.of(metadata)) != origin:
                raise CannotGoOn(f"{path} is of {found}; now it would be {origin}; choose another --out")
            before = metadata.get(_FOLDER, b"").decode(errors="backslashreplace")  # earlier versions wrote any bytes
            if before and folder and before != folder:
                raise CannotGoOn(f"{path} is of the folder {before}, and this is {folder}; choose another --out")
            folder = folder or before
        return folder

    def _part_files(self) -> list[Path]:
        # Not by glob(), which takes a folder that it may not read for an empty one. Some tools leave copies of a file.
        return sorted(path for path in self._parts.iterdir() if path.suffix == ".parquet" and path.stem.isdecimal())

    def _sources(self) -> list[Path]:
        """The files that hold rows, in the order in which they were written."""
        finished = [self._out] if self._out.exists() and not self._is_npy else []
        return finished + self._part_files()

    def _outcomes(self) -> Outcomes:
        source_of: dict[str, int] = {}
        errors: dict[str, str] = {}
        for number, table in self._tables(["id", "error"]):
            for image_id, error in zip(*(table[name].to_pylist() for name in ("id", "error")), strict=True):
                source_of[image_id] = number
                errors.pop(image_id, None)
                if error is not None:
                    errors[image_id] = error
        return Outcomes(source_of, errors)

    def _tables(self, columns: Sequence[str] | None = None) -> Iterator[tuple[int, pa.Table]]:
        """All rows, a bounded number at a time, each time with the number of their source; raises CannotGoOn."""
        nothing = self._schema.empty_table().select(columns or self._schema.names)
        for number, path in enumerate(self._sources()):
            try:
                with path.open("rb") as content, pq.ParquetFile(content) as file:
                    for group in range(file.num_row_groups):
                        rows = file.read_row_group(group, columns)  # those of earlier versions have no times
                        yield number, pa.concat_tables([nothing, rows], promote_options="default")
            except (OSError, pa.ArrowException) as error:
                raise CannotGoOn(f"{path} cannot be read: {error}") from error

    def _counting(self, outcomes: Outcomes, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The rows that count: of each id those of its latest source."""
        for number, table in self._tables(columns):
            yield table.filter([outcomes.source_of[each] == number for each in table["id"].to_pylist()])

    def _write_parquet(self, file: IO[bytes], outcomes: Outcomes) -> None:
        with pq.ParquetWriter(file, self._schema, **FORMAT) as writer:
            for table in _of_one_size(self._counting(outcomes)):
                writer.write_table(table)

    def _write_npy(self, outcomes: Outcomes) -> None:
        header = {"descr": "<f4", "fortran_order": False, "shape": (outcomes.embedded, self._dimension)}

        def write_values(file: IO[bytes]) -> None:
            np.lib.format.write_array_header_1_0(file, header)  # type: ignore[no-untyped-call]
            for table in self._embedded(outcomes):
                file.write(pc.list_flatten(table["embedding"]).to_numpy().tobytes())

        def write_ids(file: IO[bytes]) -> None:
            for table in self._embedded(outcomes, ["id", "error"]):
                file.writelines(f"{image_id}\n".encode() for image_id in table["id"].to_pylist())

        def write_errors(file: IO[bytes]) -> None:
            csv.writer(codecs.getwriter("utf-8")(file)).writerows([("id", "error"), *outcomes.errors.items()])

        replace(dict(zip(self._files, (write_values, write_ids, write_errors), strict=True)))

    def _embedded(self, outcomes: Outcomes, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        for table in self._counting(outcomes, columns):
            yield table.filter(pc.is_null(table["error"]))


def _of_one_size(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of at least `PART_ROWS`, but for the last one."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(map(len, waiting)) >= PART_ROWS:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)
