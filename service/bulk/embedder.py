"""The service's rooms in a worker process: encoded images in, embeddings or faults out.

Comes in: the settings, and the cores that the process may use. Goes out: what the service would answer. It must not
know of files or Ray.
"""

import contextlib
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from service.assembly import build_pipelines, known_embedding, load_encoders
from service.cores import Cores
from service.errors import InternalFault, StartupFault
from service.metrics import Metrics
from service.pipeline import Outcome, Row
from service.settings import Settings

logger = logging.getLogger(__name__)

# For a batch, beside ten times its share of the device, for which all lanes may wait: no image takes as long to decode,
# also where one core has all of a batch.
_BATCH_SECONDS = 60.0
_IMAGE_SECONDS = 10.0
_IMAGE_TIMES = 10.0


class Embedder:
    """One device's pipeline, tried out. Several threads may call it: one batch decodes while another encodes.

    Attributes:
        fingerprint: of the embeddings.
        dimension: D, the length of an embedding.
        lanes: the number of calls at a time that keeps the device busy.
    """

    def __init__(self, settings: Settings, cores: Cores) -> None:
        """Load all of it; raises StartupFault as the service does."""
        metrics = Metrics()
        preprocessor, encoders, self.fingerprint = load_encoders(settings, cores, metrics)
        helpers = ThreadPoolExecutor(cores.count, thread_name_prefix="decode")
        self._pipelines = build_pipelines(settings, preprocessor, encoders, cores, helpers, metrics)
        self.dimension = encoders[0].dimension
        self.lanes = settings.lanes or encoders[0].lanes
        self._image_seconds = _IMAGE_SECONDS + _IMAGE_TIMES * encoders[0].image_seconds
        known_embedding(self._pipelines)

    def embed(self, images: Sequence[bytes]) -> list[Outcome]:
        """Each image's embedding (float32 `[D]`) or its fault, in the images' order.

        An image whose fault is not its own is tried again by itself. Where not even a known image can be embedded any
        more, or this does not come to an end, the process ends, for another to take its place.
        """
        with self._in_time(len(images)):
            return self._outcomes([Row(image, False) for image in images])

    def _outcomes(self, rows: Sequence[Row]) -> list[Outcome]:
        (pipeline,) = self._pipelines
        outcomes = pipeline.embed(rows)
        if any(isinstance(outcome, InternalFault) for outcome in outcomes):
            self._prove()
            again = ((row, outcome) for row, outcome in zip(rows, outcomes, strict=True))
            outcomes = [pipeline.embed([row])[0] if isinstance(out, InternalFault) else out for row, out in again]
        return outcomes

    def _prove(self) -> None:
        try:
            known_embedding(self._pipelines)
        except StartupFault as fault:
            _end(f"this worker can embed nothing any more, and ends: {fault}")

    @contextlib.contextmanager
    def _in_time(self, images: int) -> Iterator[None]:
        """End the process where so many images take far longer than they can."""
        seconds = _BATCH_SECONDS + images * self._image_seconds
        timer = threading.Timer(seconds, _end, [f"a batch has not ended after {seconds:.0f} s; this worker ends"])
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


def _end(why: str) -> None:
    logger.critical(why)
    logging.shutdown()
    os._exit(1)  # an exception would fail the chunk, and leave the next one to a broken device
