"""Which image goes into which part: written down before the work begins, and the same however often it is begun anew.

Comes in: the names of images. Goes out: chunks, each of which becomes one part, and how far they are. It must not know
how a chunk is embedded.

A plan is a Parquet file of names in `OUT/_plan`, and each of its row groups is a chunk. A chunk's part has its name by
the plan and the row group, so whoever embeds a chunk once more writes the same rows into the same place: a row is there
once, although its image may have been embedded twice. Images that join the source later become a plan of their own.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import NamedTuple

import pyarrow as pa

from service.bulk.folder import Folder, metadata_of
from service.client.rows import Origin

_PLANS = "_plan"
_SOURCE = "source"
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
    """All chunks of one `--out`, from this run and from earlier ones."""

    def __init__(self, out: Folder, source: str, origin: Origin) -> None:
        """Read what is planned; raises Mismatch if that was for another source or other embeddings."""
        self._out = out
        self._folder = out.below(_PLANS)
        self._metadata = {_SOURCE: source, **asdict(origin)}
        self.chunks = [chunk for name in self._folder.tables() for chunk in self._read(name)]

    def extend(self, names: Iterable[str], part_rows: int) -> int:
        """Plan the images that are in no plan so far, so many a part; the number of all `names`, each once."""
        known = {name for plan in self._folder.tables() for name in self._names(plan)}
        found = set(map(_encoded, names))
        if new := sorted(found - known):
            name = f"{len(self._folder.tables()):04d}.parquet"
            schema = pa.schema({"name": pa.binary()}, metadata=self._metadata)
            self._folder.write_table(name, pa.table([new], schema=schema), row_group_size=part_rows)
            self.chunks += self._read(name)
        return len(found)

    def failed(self) -> dict[Chunk, int]:
        """How many images have failed, for each chunk whose part is there and whole."""
        there = set(self._out.tables())
        with ThreadPoolExecutor(_READERS) as readers:
            chunks = [chunk for chunk in self.chunks if chunk.part in there]
            counts = readers.map(lambda chunk: count_failed(self._out, chunk), chunks)
            return {chunk: count for chunk, count in zip(chunks, counts, strict=True) if count is not None}

    def to_do(self, retry_failed: bool) -> dict[Chunk, int]:
        """How many images are to be embedded, for each chunk that has such: all, or those that have failed."""
        failed = self.failed()
        counts = {chunk: failed.get(chunk, chunk.images) for chunk in self.chunks}
        return {chunk: count for chunk, count in counts.items() if chunk not in failed or (count and retry_failed)}

    def _read(self, name: str) -> list[Chunk]:
        with self._folder.open_table(name) as plan:
            found = metadata_of(plan.schema_arrow)
            if found != self._metadata:
                raise Mismatch(f"{self._out.path} is of {_listed(found)}; now it would be {_listed(self._metadata)}")
            groups = plan.metadata.num_row_groups
            return [Chunk(name, group, plan.metadata.row_group(group).num_rows) for group in range(groups)]

    def _names(self, plan: str) -> Iterator[bytes]:
        with self._folder.open_table(plan) as table:
            for group in range(table.num_row_groups):
                yield from table.read_row_group(group)["name"].to_pylist()


def names_of(out: Folder, chunk: Chunk) -> list[str]:
    """The names of a chunk's images, as the file system has them."""
    with out.below(_PLANS).open_table(chunk.plan) as plan:
        return [name.decode(errors="surrogateescape") for name in plan.read_row_group(chunk.group)["name"].to_pylist()]


def count_failed(out: Folder, chunk: Chunk) -> int | None:
    """How many rows of a chunk's part have an error; None where the part is not whole, as after a power failure."""
    try:
        with out.open_table(chunk.part) as part:
            groups = [part.metadata.row_group(number) for number in range(part.num_row_groups)]
    except (OSError, pa.ArrowException):
        return None
    nulls = [group.column(group.num_columns - 1).statistics.null_count for group in groups]  # `error` is the last one
    return int(sum(group.num_rows for group in groups) - sum(nulls))


def errors_of(out: Folder, chunks: Sequence[Chunk]) -> dict[str, str]:
    """The errors in these chunks' parts, by id."""
    errors: dict[str, str] = {}
    for chunk in chunks:
        with out.open_table(chunk.part) as part:
            rows = part.read(["id", "error"]).to_pylist()
        errors.update({row["id"]: row["error"] for row in rows if row["error"] is not None})
    return errors


def _encoded(name: str) -> bytes:
    return name.encode(errors="surrogateescape")


def _listed(metadata: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in metadata.items())
