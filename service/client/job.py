"""A run: images are read, sent with a bounded number of requests in flight, and their outcomes kept.

Comes in: images, a way to the service, a place for results. Goes out: a row for each image that is answered, or whose
failure is its own. It must not know of protocols or files.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from service.client.progress import Progress
from service.client.results import PART_ROWS, Results
from service.client.retry import GaveUp, Interrupted, Patience, persist
from service.client.rows import Row, normalized
from service.client.sources import Image, Images
from service.client.transport import Embedding, ImageFailed, Refused, Served, Transport, failure

# What a killed process loses is what was answered in these seconds.
PART_SECONDS = 30.0
# A replica that comes or goes may not answer the one question whether the service is there.
_SIGN_OF_LIFE = Patience(total=30.0)
# Nor the one whether it is still the same; but who has pressed Ctrl-C waits for that.
_SAME = Patience(total=5.0)
# Images that are read ahead, so that no request waits for a file.
_READERS = 16


class Unreachable(Exception):
    """The service does not answer. `str(error)` is its last sign of life."""


@dataclass(frozen=True)
class Sending:
    """How images are sent: most requests in flight, for how long one is tried, and whether rows get unit length."""

    in_flight: int
    patience: Patience
    normalize: bool


class Job:
    """One run over `images`; `stop` ends it early, with all that is in flight answered."""

    def __init__(
        self, images: Images, transport: Transport, served: Served, results: Results, sending: Sending
    ) -> None:
        self.stop = asyncio.Event()
        self.progress = Progress()
        self._images = images
        self._transport = transport
        self._served = served
        self._results = results
        self._sending = sending
        self._slots = asyncio.Semaphore(sending.in_flight)
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="read")
        self._rows: list[Row] = []
        self._saving = asyncio.Lock()

    async def run(self) -> None:
        """Embed all images, or those until `stop`.

        Raises:
            Unreachable: the service does not answer, for as long as `sending.patience` allows.
            Refused: the service does not work for this client, or is not the one it was.
        """
        workers = [asyncio.create_task(self._work()) for _ in range(self._sending.in_flight + _READERS)]
        stopper = asyncio.create_task(self._close_when_stopped())
        try:
            await self._watch(workers)
        finally:
            self._images.close()
            for task in (*workers, stopper):
                task.cancel()
            await asyncio.gather(*workers, stopper, return_exceptions=True)
            self._readers.shutdown()
            self.progress.close()

    async def _watch(self, workers: Sequence[asyncio.Task[None]]) -> None:
        """Save now and then, and once more when all have ended or one has failed."""
        done, running = set[asyncio.Task[None]](), set(workers)
        while running and not any(worker.exception() for worker in done):
            done, running = await asyncio.wait(running, timeout=PART_SECONDS, return_when=asyncio.FIRST_EXCEPTION)
            await self._save()
            self.progress.line(self._images.total)
        await asyncio.gather(*done)

    async def _close_when_stopped(self) -> None:
        await self.stop.wait()
        self._images.close()

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while (image := await loop.run_in_executor(self._readers, self._images.read_next)) is not None:
            try:
                row = Row(image.id, *await self._outcome(image), image.file_time)
            except Interrupted:
                return
            self._rows.append(row)
            self.progress.count(1, int(row.error is not None), self._images.total)
            if len(self._rows) >= PART_ROWS:
                await self._save(PART_ROWS)

    async def _outcome(self, image: Image) -> tuple[Embedding | None, str | None]:
        """Its embedding, or its error."""
        if image.error is not None:
            return None, image.error
        async with self._slots:
            try:
                embedding = await persist(lambda: self._transport.embed(image.data), self._sending.patience, self.stop)
            except ImageFailed as error:
                return None, str(error)
            except GaveUp as reason:
                return None, str(await self._blame(reason))
        if embedding.size != self._served.dimension:
            raise Refused(f"an embedding has {embedding.size} dimensions instead of {self._served.dimension}")
        return normalized(embedding) if self._sending.normalize else embedding, None

    async def _blame(self, reason: GaveUp) -> ImageFailed:
        """What an image that gets no answer has failed of, where the service answers another question.

        Raises:
            Unreachable: it does not.
        """
        try:
            await persist(self._transport.served, _SIGN_OF_LIFE, self.stop)
        except GaveUp:
            raise Unreachable(str(reason)) from reason
        return failure("no_answer", str(reason))

    async def _save(self, least: int = 1) -> None:
        """Keep what is answered, unless another service has taken the place of the one that was asked.

        Nothing is done where it is fewer than `least` rows, as others have kept them meanwhile, or as long as no image
        is there: it may be that a disk is missing, which no image is to blame for.
        """
        async with self._saving:
            if len(self._rows) < least or not self._images.is_there:
                return
            rows, self._rows = self._rows, []
            # Nobody answers any more where that gives up, and what came before is kept.
            with contextlib.suppress(GaveUp):
                served = await persist(self._transport.served, _SAME, asyncio.Event())
                if served != self._served:
                    raise Refused(f"the service was of {self._served}; now it is of {served}")
            await asyncio.to_thread(self._results.write, rows)
