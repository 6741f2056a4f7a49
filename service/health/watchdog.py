"""Whether the running service can still answer.

Comes in: its parts, and a canary to ask it with. Goes out: `TritonFailure` where another tritonserver can mend it, and
any other `ServiceFailure` for whoever supervises this process to start it anew. It must not know how an image becomes
an embedding.
"""

import http.client
import math
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from service.errors import ServiceFailure
from service.health.canary import Answer, Canary
from service.health.hangs import StageWatch
from service.metrics import Metrics
from service.model.encoder import Encoder
from service.process.local_client import LocalClient
from service.pytriton_compat.triton import SupervisedTriton, TritonFailure

_MOST_FAILURES = 2
_LIVE_SECONDS = 2.0
_MODEL = "embed_image"
# Where no batch has come for so long, and none is in the works, a canary without an answer is not waiting for its turn.
_STILL_SECONDS = 4.0
_MOST_UNANSWERED = 3


class Watchdog:
    """Looks after a running service."""

    def __init__(
        self,
        triton: SupervisedTriton,
        encoders: Sequence[Encoder],
        images: int,
        metrics: Metrics,
        client: LocalClient,
        canary: Canary,
    ) -> None:
        """Get to know the parts; `images` are in the works at a time on each device at most."""
        self._triton = triton
        self._client = client
        self._encoders = encoders
        self._metrics = metrics
        image_seconds = max(encoder.image_seconds for encoder in encoders)
        self._stages = StageWatch(metrics, images, image_seconds)
        self._unanswered = 0
        self._canary = canary
        self._canary_sender = ThreadPoolExecutor(1, thread_name_prefix="canary")
        self._canary_answer: Future[Answer] | None = None
        self._canary_at = time.monotonic()
        self._canary_sent_at = 0.0
        self._batches, self._moved_at = 0, -math.inf
        self._canary_pause = canary_pause(image_seconds)
        self._refusals = 0

    def look(self) -> None:
        """Look at every part once. It takes time only where a part does not answer.

        Raises:
            TritonFailure: Triton's part has died, hangs, or loses requests.
            ServiceFailure: another part hangs, fails, or answers wrongly.
        """
        self._stages.look()
        self._triton.check_alive(self._canary_pause)
        self._check_front_end()
        self._stages.look()
        self._check_encoders()
        self._note_batches()
        self._check_canary()

    def _check_front_end(self) -> None:
        try:
            self._client.get("/v2/health/live", _LIVE_SECONDS)
            self._unanswered = 0
        except (OSError, http.client.HTTPException):
            self._unanswered += 1
        if self._unanswered >= _MOST_UNANSWERED:
            raise TritonFailure("tritonserver does not answer any more")

    def _check_encoders(self) -> None:
        for encoder in self._encoders:
            if encoder.failures_in_a_row >= _MOST_FAILURES:
                raise ServiceFailure(f"the encoder on {encoder.device} fails batch after batch")
        self._stages.check()

    def _note_batches(self) -> None:
        """When one has last reached a lane. Those of the other model say nothing: our own are among them."""
        batches = self._triton.batches(_MODEL)
        if batches != self._batches:
            self._batches, self._moved_at = batches, time.monotonic()

    def _check_canary(self) -> None:
        """Send one after the other; each is judged when its answer is there, or the time for one is over."""
        if self._canary_answer is not None:
            if self._canary_answer.done():
                answer, self._canary_answer = self._canary_answer, None
                self._judge(answer)
        elif time.monotonic() > self._canary_at:
            self._canary_sent_at = time.monotonic()
            self._canary_answer = self._canary_sender.submit(self._canary.send)

    def _judge(self, answer: Future[Answer]) -> None:
        self._canary_at = time.monotonic() + self._canary_pause
        try:
            kind = answer.result()
        except (OSError, http.client.HTTPException) as error:
            # Where batches come and go, or one takes long, the canary is waiting for its turn.
            is_moving = time.monotonic() - self._moved_at < _STILL_SECONDS or self._triton.is_working(_MODEL)
            # One that was under way in a freeze has waited for too long by that alone.
            if not is_moving and self._canary_sent_at > self._stages.awake_since:
                raise TritonFailure("the canary was lost on its way to a lane") from error
            return
        if kind == "right":
            self._metrics.canary_answered()
        self._refusals = self._refusals + 1 if kind == "refused" else 0
        if self._refusals >= _MOST_FAILURES:
            raise ServiceFailure("one canary after another is answered with an error")


def canary_pause(image_seconds: float) -> float:
    """Seconds between two canaries, on a device that needs `image_seconds` for one.

    They get a hundredth of its time. Where a wrong embedding would then be seen only after more than eight seconds they
    get more, but never over a twentieth.
    """
    return max(2.0, min(8.0, 100 * image_seconds), 20 * image_seconds)
