"""What came of each image, as rows of Parquet: the columns, their types, and the origin in the metadata.

Comes in: ids with embeddings or errors. Goes out: Arrow tables and their schema. It must not know of files.

An error is one line, `code: what is wrong`; the row's embedding is then NaNs.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from service.client.transport import Embedding

# Embeddings do not compress.
FORMAT: Mapping[str, Any] = {"compression": "none", "use_dictionary": ["error"], "write_statistics": ["id", "error"]}
_EXAMPLES_A_CODE = 3


class Row(NamedTuple):
    """What came of an image: float32 `[D]`, or an error as `code: what is wrong`.

    Attributes:
        file_time: when its file was written, in nanoseconds; for a schema with such a column.
    """

    id: str
    embedding: Embedding | None
    error: str | None
    file_time: int | None = None


@dataclass(frozen=True)
class Origin:
    """What makes embeddings comparable; only rows of one origin go into one file."""

    fingerprint: str
    model: str
    normalize: str

    def __str__(self) -> str:
        return ", ".join(f"{name} {value or 'unknown'}" for name, value in asdict(self).items())

    @classmethod
    def of(cls, metadata: Mapping[bytes, bytes]) -> "Origin":
        """The origin in a parquet file's metadata; empty where there is none."""
        return cls(*(metadata.get(name.encode(), b"").decode() for name in cls.__dataclass_fields__))


def schema_of(origin: Origin, dimension: int) -> pa.Schema:
    """The columns `id`, `embedding` (of `dimension` numbers) and `error`."""
    columns = {"id": pa.string(), "embedding": pa.list_(pa.float32(), dimension), "error": pa.string()}
    return pa.schema(columns, metadata=asdict(origin))


def table_of(rows: Sequence[Row], schema: pa.Schema) -> pa.Table:
    """At least one row, in the columns of `schema_of` or of one with `file_time`."""
    dimension = schema.field("embedding").type.list_size
    # Not null: Arrow cannot read back a fixed-size list that is null.
    nothing = np.full(dimension, np.nan, np.float32)
    values = np.concatenate([nothing if row.embedding is None else row.embedding for row in rows])
    vectors = pa.FixedSizeListArray.from_arrays(values, dimension)
    columns = {name: vectors if name == "embedding" else [getattr(row, name) for row in rows] for name in schema.names}
    return pa.table(columns, schema=schema)


def normalized(embedding: Embedding) -> Embedding:
    """Divided by its L2 norm, as the service does it; float32 `[D]` both ways."""
    unit: Embedding = embedding / max(np.linalg.norm(embedding), np.finfo(np.float32).tiny)
    return unit


def report(errors: Mapping[str, str], gone: Collection[str]) -> Iterator[str]:
    """The lines that tell how many images have failed of what, with a few of each code by id.

    Of those that are `gone` from the source only how many there are.
    """
    by_code: dict[str, list[str]] = {}
    for image_id, error in errors.items():
        if image_id not in gone:
            code, _, message = error.partition(": ")
            by_code.setdefault(code, []).append(f"{image_id}: {message}")
    if gone:
        yield f"{len(gone):,} failed in earlier runs, and are not in this source"
    if by_code:
        yield f"{sum(map(len, by_code.values())):,} failed, and are tried again with --retry-failed:"
    for code, failed in sorted(by_code.items()):
        yield f"  {code}: {len(failed):,}"
        yield from (f"    {line}" for line in failed[:_EXAMPLES_A_CODE])
