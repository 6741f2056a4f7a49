"""Whether each of a model's stubs still gets its batches.

A stub that stands still in Triton's own code has a pulse, and nobody waits for it but the requests of its batch. Triton
hands batches to its idle stubs in turn, though, so one that is passed over again and again has not come back for more.

It must not know what a batch is of.
"""

import time
from collections.abc import Sequence
from typing import NamedTuple

from service.pytriton_compat.lane import Lane

# Batches, on average of the model's other lanes, and seconds without one: together no bad luck.
_MOST_PASSED = 10
_LEAST_SECONDS = 6.0


class _Turn(NamedTuple):
    """When a lane was seen to be at work, and how many batches it and the others had by then."""

    at: float
    batches: int
    of_others: int


class Turns:
    """Takes note of lanes' turns each time that it is asked."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        """Begin with what these lanes have done so far."""
        self._others = {
            lane: [each for each in lanes if each.model == lane.model and each is not lane] for lane in lanes
        }
        self._last = {lane: self._turn(lane) for lane in lanes}

    def passed_over(self, canary_seconds: float) -> Lane | None:
        """One of the lanes that gets no batches while the others of its model do.

        A batch that Triton refuses itself takes a turn and reaches no lane, so a client can have one passed over. But
        each canary, one in so many seconds, moves its turns on by one.
        """
        for lane, others in self._others.items():
            now, last = self._turn(lane), self._last[lane]
            if lane.in_the_works or now.batches > last.batches:
                self._last[lane] = now
                continue
            seconds = max(_LEAST_SECONDS, (len(others) + 2) * canary_seconds)
            if now.of_others - last.of_others > _MOST_PASSED * len(others) and now.at - last.at > seconds:
                return lane
        return None

    def _turn(self, lane: Lane) -> _Turn:
        return _Turn(time.monotonic(), lane.batches, sum(other.batches for other in self._others[lane]))
