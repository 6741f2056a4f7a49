"""One process of the job: a chunk of the plan in, its part written.

Comes in: chunks, several at a time. Goes out: for each what came of it. It must not know who deals the chunks.
"""

import logging
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from service.bulk.folder import Folder
from service.bulk.plan import Chunk, count_failed, places_of
from service.bulk.reader import Reader
from service.bulk.strikes import Strikes
from service.client.listing import CHANGED, Place, Stamp, id_of
from service.client.rows import FORMAT, Origin, Row, normalized, schema_of, table_of
from service.cores import Cores
from service.errors import Fault, ServiceFailure
from service.logs import configure_logging
from service.settings import Settings

if TYPE_CHECKING:
    from service.bulk.embedder import Embedder

logger = logging.getLogger(__name__)

# An object store takes a while to answer, but answers many questions at a time.
_READERS = 64
# Times that a chunk is begun and its worker dies, which may be for another reason, before it is a suspect; and times
# that its worker dies of one image, for the same reason.
_STRIKES = 3
_DEATHS = 2


class Facts(NamedTuple):
    """What a worker says of itself: the fingerprint, and how many chunks at a time keep its device busy."""

    fingerprint: str
    lanes: int


class Site(NamedTuple):
    """Where the images are, and where their embeddings go, all of one origin."""

    source: Folder
    out: Folder
    origin: Origin


def introduce(settings: Settings, cpus: int) -> Facts:
    """What a worker with these settings would be; raises StartupFault if it could not be one."""
    embedder = _build(settings, cpus)
    return Facts(embedder.fingerprint, embedder.lanes)


class Worker:
    """Embeds chunks. As many calls at a time as its device has lanes: one reads or decodes while another encodes."""

    def __init__(self, settings: Settings, cpus: int, site: Site) -> None:
        """Load the checkpoint.

        Raises:
            StartupFault: it cannot be loaded.
            ServiceFailure: this machine's embeddings are others than the job's.
        """
        self._embedder = _build(settings, cpus)
        if self._embedder.fingerprint != site.origin.fingerprint:
            raise ServiceFailure(
                f"the job's fingerprint is {site.origin.fingerprint}, here it is {self._embedder.fingerprint}: workers"
                " have other devices or checkpoints; try another --dtype, or workers of one kind"
            )
        self._settings = settings
        self._site = site
        self._schema = schema_of(site.origin, self._embedder.dimension)
        self._strikes = Strikes(site.out)
        self._alone = threading.Lock()
        self._reader = Reader(site.source)
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="read")

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Write the part of the chunk in `item`; answers how many `images` of it are done by that, how many `failed`.

        A part that is there is left as it is, but for the images that have failed if `item["again"]` says so. How many
        are to do is in `item["to_do"]`: who takes over from a worker that has died cannot see it.

        Raises:
            ServiceFailure: this worker cannot go on, as with a full disk. In one line: of what else is raised Ray makes
                many.
        """
        chunk = Chunk(item["plan"], item["group"], item["images"])
        try:
            return {"images": item["to_do"], "failed": self._finish(chunk, item["again"])}
        except ServiceFailure:
            raise
        except Exception as error:
            logger.error("an exception was not caught", exc_info=error)
            raise ServiceFailure.of(error) from error

    def _finish(self, chunk: Chunk, again: bool) -> int:
        """Have the chunk's part; the number of its rows that have an error."""
        failed = count_failed(self._site.out, chunk)
        if failed is None:
            return self._write(chunk, self._rows(chunk, places_of(self._site.out, chunk)))
        if failed and again:
            return self._write(chunk, self._rows_again(chunk))
        return failed

    def _write(self, chunk: Chunk, rows: pa.Table) -> int:
        """The number of rows that have an error."""
        self._site.out.write_table(chunk.part, rows, **FORMAT)
        self._strikes.end(chunk)
        return len(rows) - int(rows["error"].null_count)

    def _rows_again(self, chunk: Chunk) -> pa.Table:
        """The part's rows, those that have an error embedded once more."""
        with self._site.out.open_table(chunk.part) as part:
            table = part.read().sort_by("id")
        # Row by row, as two names may have one id; and sorted, as earlier versions left parts in another order.
        places = sorted(places_of(self._site.out, chunk), key=lambda place: id_of(place.name))
        failed = [number for number, error in enumerate(table["error"].to_pylist()) if error is not None]
        rows = pa.concat_tables([table, self._rows(chunk, [places[number] for number in failed])])
        new = dict(zip(failed, range(len(table), len(rows)), strict=True))
        return rows.take([new.get(number, number) for number in range(len(table))])

    def _rows(self, chunk: Chunk, places: Sequence[Place]) -> pa.Table:
        suspect = self._strikes.begin(chunk) >= _STRIKES
        rows = list(self._one_by_one(chunk, places) if suspect else self._in_batches(places))
        return table_of(list(self._unless_changed(places, rows)), self._schema)

    def _unless_changed(self, places: Sequence[Place], rows: Sequence[Row]) -> Iterator[Row]:
        """Asked when all is read: no embedding of what a tar file that has changed may have held elsewhere."""
        tars = sorted({place.file for place in places if place.stamp})
        stamps = dict(zip(tars, self._readers.map(self._stamp, tars), strict=True))
        for place, row in zip(places, rows, strict=True):
            stamp = stamps[place.file] if place.stamp else None
            if stamp == place.stamp:
                yield row
            else:
                yield Row(row.id, None, f"unreadable: {stamp if isinstance(stamp, str) else CHANGED}")

    def _one_by_one(self, chunk: Chunk, places: Sequence[Place]) -> Iterator[Row]:
        """Of all suspects one image at a time, so that it is known which one a worker dies of."""
        deaths = self._strikes.deaths(chunk)
        for number, place in enumerate(places):
            if deaths[number] >= _DEATHS:
                yield Row(id_of(place.name), None, f"worker_died: {_DEATHS} times, the process ended at this image")
                continue
            with self._alone, self._strikes.image(chunk, number, deaths[number]):
                rows = list(self._embed([place], [self._read(place)]))
            yield from rows

    def _in_batches(self, places: Sequence[Place]) -> Iterator[Row]:
        """A batch is read while the one before it is embedded."""
        size = self._settings.max_batch_size
        batches = [places[start : start + size] for start in range(0, len(places), size)]
        reading = self._read_all(batches[0])
        for batch, following in zip(batches, [*batches[1:], []], strict=True):
            images = [image.result() for image in reading]
            reading = self._read_all(following)
            yield from self._embed(batch, images)

    def _read_all(self, places: Sequence[Place]) -> list[Future[bytes | str]]:
        return [self._readers.submit(self._read, place) for place in places]

    def _read(self, place: Place) -> bytes | str:
        """An image's bytes, or the error that there are none. One byte too many is enough to be refused.

        Raises:
            ServiceFailure: the whole source cannot be read from here any more.
        """
        try:
            return self._reader.read(place, self._settings.max_image_bytes + 1)
        except (OSError, ValueError) as error:
            return f"unreadable: {self._reason(error)}"

    def _stamp(self, tar: str) -> Stamp | str:
        """A tar file's stamp, or the error that there is none; raises as `_read`."""
        try:
            return self._site.source.stamp(tar)
        except (OSError, ValueError) as error:
            return self._reason(error)

    def _reason(self, error: OSError | ValueError) -> str:
        number = getattr(error, "errno", None)
        reason = os.strerror(number) if number else " ".join(str(error).split())
        if not self._site.source.is_there():
            raise ServiceFailure(f"{self._site.source.path} is out of reach, or empty: {reason}") from error
        return reason

    def _embed(self, places: Sequence[Place], images: Sequence[bytes | str]) -> Iterator[Row]:
        outcomes = iter(self._embedder.embed([image for image in images if isinstance(image, bytes)]))
        for (name, *_), image in zip(places, images, strict=True):
            outcome = image if isinstance(image, str) else next(outcomes)
            if isinstance(outcome, str | Fault):
                yield Row(id_of(name), None, str(outcome))
            else:
                yield Row(id_of(name), normalized(outcome) if self._settings.default_normalize else outcome, None)


def _build(settings: Settings, cpus: int) -> "Embedder":
    configure_logging(settings.log_level, settings.log_format)
    # Only now: the process that deals the chunks needs no torch, and a worker's environment is complete.
    from service.bulk.embedder import Embedder

    return Embedder(settings, Cores(settings.cpu_threads or cpus))
