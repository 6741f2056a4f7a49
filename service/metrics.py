"""What the service measures of itself.

It must not know what is measured. Names and units follow Prometheus' conventions; all of ours start with `embed_`.
"""

import contextlib
import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

_STAGES = ("decode", "resize", "encode")
# There from the start: rate() sees nothing of a counter that appears together with its first event.
_CODES = ("ok", "internal_error")
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


class Metrics:
    """The service's measurements. Safe to use from several threads; a measurement takes a few microseconds."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        stage_seconds = Histogram(
            "embed_stage_seconds",
            "Seconds of a stage: decode and resize of one image, encode of one batch.",
            ["stage"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        # labels() takes as long as the measurement itself.
        self._stage_seconds = {stage: stage_seconds.labels(stage) for stage in _STAGES}
        self.batch_images = Histogram(
            "embed_batch_images", "Images encoded in one batch.", buckets=_IMAGES, registry=self.registry
        )
        self._images = Counter(
            "embed_images",
            "Images answered, by outcome: ok, or the code of their fault.",
            ["code"],
            registry=self.registry,
        )
        for code in _CODES:
            self._images.labels(code)
        self.repeats = Counter(
            "embed_repeats", "Images answered without encoding, as repeats of others.", registry=self.registry
        )
        self._running: dict[object, float] = {}
        self.busy_lanes = Gauge("embed_busy_lanes", "Batches in the works.", registry=self.registry)
        self.encoder_failures = Counter(
            "embed_encoder_failures", "Batches that the encoder could not compute.", registry=self.registry
        )
        self.triton_restarts = Counter(
            "embed_triton_restarts", "Failed tritonservers that were started anew.", registry=self.registry
        )
        self._add_state()

    def _add_state(self) -> None:
        """What is read at the moment of a scrape, and what holds as long as the service runs."""
        self.canary_answered()
        canary_age = Gauge(
            "embed_canary_age_seconds",
            "Seconds since a known image, sent through the whole service, last came back right.",
            registry=self.registry,
        )
        canary_age.set_function(lambda: time.monotonic() - self._canary_answered_at)
        self.encoder_memory = Gauge(
            "embed_encoder_memory_bytes",
            "Memory of the device that the encoder holds, in use or kept for the next batch; on CUDA only.",
            ["device"],
            registry=self.registry,
        )
        self.service_info = Info(
            "embed_service", "What this service is, and the fingerprint of its embeddings.", registry=self.registry
        )
        ProcessCollector(registry=self.registry)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the seconds of a stage: `decode`, `resize` or `encode`. One that raises counts as well."""
        key, started = object(), time.perf_counter()
        self._running[key] = started
        try:
            yield
        finally:
            del self._running[key]
            self._stage_seconds[name].observe(time.perf_counter() - started)

    def longest_stage(self) -> float:
        """Seconds that the oldest of the stages in the works has taken so far; 0 where there is none."""
        now = time.perf_counter()
        return now - min(list(self._running.values()), default=now)

    def answered(self, code: str, images: int = 1) -> None:
        """Count images by their outcome: `ok`, or the code of their fault."""
        self._images.labels(code).inc(images)

    def canary_answered(self) -> None:
        """The canary came back right just now; before the first time, its age counts from the start."""
        self._canary_answered_at = time.monotonic()
