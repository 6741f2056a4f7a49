"""Whether a decode or an encode hangs: it takes far longer than any can, and the process was not frozen meanwhile.

Comes in: the measurements of the stages. Goes out: `ServiceFailure`. It must not know what becomes of who hangs.
"""

import math
import time

from service.errors import ServiceFailure
from service.metrics import Metrics

# No image takes as long to decode, even where many threads share a core.
_STAGE_SECONDS = 20.0
_STAGE_TIMES = 5.0
# Between two looks, beyond what one may take: the process has been frozen, as by a container's pause.
_FROZEN_SECONDS = 4.0


class StageWatch:
    """Watches the stages of a process that looks at them all the time.

    Attributes:
        awake_since: when the process was last found to have been frozen, by `time.monotonic()`; minus infinity before.
    """

    def __init__(self, metrics: Metrics, images: int, image_seconds: float) -> None:
        """At most `images` are in the works on a device, which needs `image_seconds` for one; all may wait for it."""
        self.awake_since = -math.inf
        self._metrics = metrics
        self._most_seconds = _STAGE_SECONDS + _STAGE_TIMES * images * image_seconds
        self._looked_at = time.monotonic()

    def look(self) -> None:
        """Take note that the process runs. More than four seconds between two calls are taken for a freeze."""
        now = time.monotonic()
        if now - self._looked_at > _FROZEN_SECONDS:
            self.awake_since = now
        self._looked_at = now

    def check(self) -> None:
        """Look at the stages in the works as of the last `look`; raises ServiceFailure where one hangs."""
        if min(self._metrics.longest_stage(), self._looked_at - self.awake_since) > self._most_seconds:
            raise ServiceFailure(f"a decode or encode has not ended after {self._most_seconds:.0f} s")
