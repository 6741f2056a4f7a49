"""The service's rooms in a worker process: encoded images in, embeddings or faults out.

Comes in: the settings, and the cores that the process may use. Goes out: what the service would answer. It must not
know of files or Ray.
"""

import logging
import os
import threading
import time
from collections.abc import Sequence

from service.assembly import build_pipelines, known_embedding, load_encoders
from service.cores import Cores
from service.errors import InternalFault, ServiceFailure, StartupFault
from service.health.hangs import StageWatch
from service.metrics import Metrics
from service.pipeline import Outcome, Row
from service.settings import Settings

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0


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
        self._pipelines = build_pipelines(settings, preprocessor, encoders, cores, metrics)
        self.dimension = encoders[0].dimension
        self.lanes = settings.lanes or encoders[0].lanes
        known_embedding(self._pipelines)
        stages = StageWatch(metrics, self.lanes * settings.max_batch_size, encoders[0].image_seconds)
        threading.Thread(target=_watch, args=(stages,), name="watch", daemon=True).start()

    def embed(self, images: Sequence[bytes]) -> list[Outcome]:
        """Each image's embedding (float32 `[D]`) or its fault, in the images' order.

        An image whose fault is not its own is tried again by itself. Where not even a known image can be embedded any
        more, or a stage does not come to an end, the process ends, for another to take its place.
        """
        rows = [Row(image, False) for image in images]
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


def _watch(stages: StageWatch) -> None:
    """End the process where a stage hangs."""
    while True:
        time.sleep(_LOOK_SECONDS)
        stages.look()
        try:
            stages.check()
        except ServiceFailure as failure:
            return _end(f"{failure}; this worker ends")


def _end(why: str) -> None:
    logger.critical(why)
    logging.shutdown()
    os._exit(1)  # an exception would fail the chunk, and leave the next one to a broken device
