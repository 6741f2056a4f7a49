"""Which image goes into which part: written down before the work begins, and the same however often it is begun anew.

Comes in: images, by where they are. Goes out: chunks, each of which becomes one part, and how far they are. It must not
know how a chunk is embedded.

A plan is a Parquet file of names in `OUT/_plan`, and each of its row groups is a chunk. A chunk's part has its name by
the plan and the row group, so whoever embeds a chunk once more writes the same rows into the same place: a row is there
once, although its image may have been embedded twice. Images that join the source later become a plan of their own.

Of images in tar files it holds also where their bytes are, and the stamp of the tar file for which that is so. When the
next run finds the tar file written anew, it corrects that; names and chunks stay as they are.
"""

import gc
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import count, islice
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from service.bulk.folder import Folder
from service.client.listing import Place, Stamp, id_of
from service.client.rows import Origin

_PLANS = "_plan"
_SOURCE = "source"
# Whole files have only a name, and plans of earlier versions only such. Large, or Arrow could not sort over 2 GiB.
_COLUMNS = pa.schema(
    {
        "name": pa.large_binary(),
        "file": pa.large_binary(),
        "offset": pa.int64(),
        "size": pa.int64(),
        "file_size": pa.int64(),
        "file_time": pa.int64(),
    }
)
_CHUNKS = 1000  # of a plan at most: to read one of them, Parquet reads first where each is
_BATCH = 2**14  # images that are in memory as more than a row of a table
_READERS = 32  # an answer of an object store takes its time, but many can be asked for


class Mismatch(Exception):
    """What is there and what is to come do not fit together."""


class Chunk(NamedTuple):
    """The images of one part.

    Attributes:
        plan: name of the plan's file.
        group: the row group in it that holds their names.
        images: how many there are.
    """

    plan: str
    group: int
    images: int

    @property
    def part(self) -> str:
        """Name of the file that gets their rows."""
        return f"{self.plan.removesuffix('.parquet')}-{self.group:06d}.parquet"


class Plan:
    """All chunks of one `--out`, from this run and from earlier ones.

    Attributes:
        chunks: of all plans, in their order.
        gone: ids of images that are planned and that the source does not have any more.
    """

    def __init__(self, out: Folder, source: str, origin: Origin) -> None:
        """Read what is planned; raises Mismatch if that was for another source or embeddings, or is not all there."""
        self._out = out
        self._folder = out.below(_PLANS)
        self._metadata = {_SOURCE: source, **asdict(origin)}
        for folder in (out, self._folder):
            folder.tidy()
        self.chunks = [chunk for name in self._plans() for chunk in self._read(name)]
        if strange := set(out.tables()) - {chunk.part for chunk in self.chunks}:  # it would count as done
            raise Mismatch(f"{out.path} has {min(strange)}, which is in no plan of {_PLANS}; choose another --out")
        self.gone = set[str]()

    def extend(self, places: Iterable[Place], part_rows: int) -> int:
        """Plan the images that are in no plan so far, so many a part; the number of all `places`."""
        listed, new, moved = self._compare(places)
        self._correct(moved)
        new, rows = new.sort_by("name"), part_rows * _CHUNKS  # so a tar file's images are in neighbouring chunks
        for start in range(0, len(new), rows):
            there = self._plans()
            # Where somebody has removed one, their number is the name of another.
            plan = next(name for number in count(len(there)) if (name := f"{number:04d}.parquet") not in there)
            self._put(plan, new.slice(start, rows), part_rows)
            self.chunks += self._read(plan)
        return listed

    def failed(self) -> dict[Chunk, int]:
        """How many images have failed, for each chunk whose part is there and whole."""
        there = set(self._out.tables())
        with ThreadPoolExecutor(_READERS) as readers:
            chunks = [chunk for chunk in self.chunks if chunk.part in there]
            counts = readers.map(lambda chunk: count_failed(self._out, chunk), chunks)
            return {chunk: count for chunk, count in zip(chunks, counts, strict=True) if count is not None}

    def to_do(self, failed: Mapping[Chunk, int], retry_failed: bool) -> dict[Chunk, int]:
        """How many images are to be embedded, for each chunk that has such: all, or those that have `failed`."""
        counts = {chunk: failed.get(chunk, chunk.images) for chunk in self.chunks}
        return {chunk: count for chunk, count in counts.items() if chunk not in failed or (count and retry_failed)}

    def _plans(self) -> list[str]:
        """Names of the plans' files. Some tools leave copies of a file, whose images would be there twice."""
        return [name for name in self._folder.tables() if name.removesuffix(".parquet").isdecimal()]

    def _read(self, name: str) -> list[Chunk]:
        with self._folder.open_table(name) as plan:
            found = {name.decode(): value.decode() for name, value in (plan.schema_arrow.metadata or {}).items()}
            if found != self._metadata:
                raise Mismatch(f"{self._out.path} is of {_listed(found)}; now it would be {_listed(self._metadata)}")
            groups = plan.metadata.num_row_groups
            return [Chunk(name, group, plan.metadata.row_group(group).num_rows) for group in range(groups)]

    def _compare(self, places: Iterable[Place]) -> tuple[int, pa.Table, dict[bytes, Place]]:
        """How many there are, those that are in no plan, and those whose tar file is another one than planned."""
        known, stamps = self._known()
        listed, new, moved, gone = 0, [_COLUMNS.empty_table()], dict[bytes, Place](), set(known)
        gc.freeze()  # or each collection looks at all names, and the more images, the more collections there are
        rest = iter(places)
        while batch := {_encoded(place.name): place for place in islice(rest, _BATCH)}:
            listed += len(batch)
            new.append(_table([place for name, place in batch.items() if name not in known]))
            for name, place in batch.items():
                if name in known and place.stamp and stamps[_encoded(place.file)] - {place.stamp}:
                    moved[name] = place
            known.update(batch)
            gone.difference_update(batch)
        gc.unfreeze()
        self.gone = {id_of(_decoded(name)) for name in gone}
        return listed, pa.concat_tables(new), moved

    def _known(self) -> tuple[set[bytes], defaultdict[bytes, set[Stamp]]]:
        """The names of all images that are planned, and of each tar file the stamps that they are planned with."""
        names, stamps = set[bytes](), defaultdict[bytes, set[Stamp]](set)
        for plan in self._plans():
            for group in self._groups(plan):
                names.update(group["name"].to_pylist())
                columns = (group[name].to_pylist() for name in ("file", "file_size", "file_time"))
                for file, size, time in set(zip(*columns, strict=True)):
                    stamps[file].add((size, time))
        return names, stamps

    def _correct(self, moved: Mapping[bytes, Place]) -> None:
        """Images are elsewhere than is planned; which chunk they are in stays."""
        for plan in self._plans() if moved else ():
            groups, is_other = list[pa.Table](), False
            for group in self._groups(plan):
                places = _places(group)  # of one group at a time, as they take more memory than a table
                is_other = is_other or any(_encoded(place.name) in moved for place in places)
                groups.append(_table([moved.get(_encoded(place.name), place) for place in places]))
            if is_other:
                self._put(plan, pa.concat_tables(groups), len(groups[0]))

    def _put(self, plan: str, table: pa.Table, part_rows: int) -> None:
        self._folder.write_table(plan, table.replace_schema_metadata(self._metadata), row_group_size=part_rows)

    def _groups(self, plan: str) -> Iterator[pa.Table]:
        with self._folder.open_table(plan) as table:
            yield from (_group(table, number) for number in range(table.num_row_groups))


def places_of(out: Folder, chunk: Chunk) -> list[Place]:
    """Where a chunk's images are, by names as the file system has them."""
    with out.below(_PLANS).open_table(chunk.plan) as plan:
        return _places(_group(plan, chunk.group))


def _group(plan: pq.ParquetFile, number: int) -> pa.Table:
    """Rows of a plan; of one of an earlier version all but the names are nulls."""
    return pa.concat_tables([_COLUMNS.empty_table(), plan.read_row_group(number)], promote_options="permissive")


def _table(places: Sequence[Place]) -> pa.Table:
    rows = (
        (_encoded(name), _encoded(file), offset, size, *stamp) if stamp else (_encoded(name), *[None] * 5)
        for name, file, offset, size, stamp in places
    )
    columns = list(zip(*rows, strict=True)) or [()] * len(_COLUMNS)
    return pa.table(list(map(pa.array, columns, _COLUMNS.types)), schema=_COLUMNS)


def _places(table: pa.Table) -> list[Place]:
    rows = zip(*(column.to_pylist() for column in table.columns), strict=True)
    return [
        Place(_decoded(name), _decoded(file), offset, size, (file_size, file_time))
        if file
        else Place(_decoded(name), _decoded(name))
        for name, file, offset, size, file_size, file_time in rows
    ]


def count_failed(out: Folder, chunk: Chunk) -> int | None:
    """How many rows of a chunk's part have an error; None where the part is not whole, as after a power failure."""
    try:
        with out.open_table(chunk.part) as part:
            rows = part.metadata
    except OSError:
        return None
    errors = [rows.row_group(number).column(rows.num_columns - 1) for number in range(rows.num_row_groups)]  # the last
    return int(rows.num_rows - sum(column.statistics.null_count for column in errors))


def errors_of(out: Folder, failed: Mapping[Chunk, int]) -> dict[str, str]:
    """The errors in the parts of the chunks that have any, by id."""

    def errors_in(chunk: Chunk) -> dict[str, str]:
        with out.open_table(chunk.part) as part:
            rows = part.read(["id", "error"]).to_pylist()
        return {row["id"]: row["error"] for row in rows if row["error"] is not None}

    with ThreadPoolExecutor(_READERS) as readers:
        found = readers.map(errors_in, (chunk for chunk, count in failed.items() if count))
        return {image_id: error for errors in found for image_id, error in errors.items()}


def _encoded(name: str) -> bytes:
    return name.encode(errors="surrogateescape")


def _decoded(name: bytes) -> str:
    return name.decode(errors="surrogateescape")


def _listed(metadata: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in metadata.items())
