"""What the watchdog calls a failure of the service, and what it does not."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from service.errors import ServiceFailure
from service.health import canary as canary_room
from service.health import hangs
from service.health import watchdog as room
from service.health.watchdog import Watchdog, canary_pause
from service.metrics import Metrics
from service.pytriton_compat.triton import TritonFailure

LOOKS = 500


class Triton:
    """The batches of each model, and whether one is in the works."""

    def __init__(self) -> None:
        self.counted: Counter[str] = Counter()
        self.works = False

    def check_alive(self, canary_seconds: float) -> None:
        """Say nothing."""
        self.canary_seconds = canary_seconds

    def batches(self, model: str) -> int:
        return self.counted[model]

    def is_working(self, model: str) -> bool:
        return self.works and model == "embed_image"


class Parts(SimpleNamespace):
    """Stand-ins for the parts of a service in good health."""

    triton: Any
    encoder: Any
    client: Any
    canary: Any
    metrics: Metrics


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Parts:
    monkeypatch.setattr(room, "canary_pause", lambda _: 0.0)
    return Parts(
        triton=Triton(),
        encoder=SimpleNamespace(device="cuda:1", failures_in_a_row=0, image_seconds=0.1),
        client=SimpleNamespace(get=lambda path, seconds: (200, b"")),
        canary=SimpleNamespace(send=lambda: "right"),
        metrics=Metrics(),
    )


def _watchdog(parts: Parts) -> Watchdog:
    faster = SimpleNamespace(device="cuda:0", failures_in_a_row=0, image_seconds=0.01)
    encoders: Any = [faster, parts.encoder]
    return Watchdog(parts.triton, encoders, 20, parts.metrics, parts.client, parts.canary)


def _look(watchdog: Watchdog, until: threading.Event | None = None) -> None:
    """Look until something has happened; a canary is answered in a thread of its own."""
    for _ in range(LOOKS):
        watchdog.look()
        if until and until.wait(0.01):
            return
    assert until is None


def _waiting_for_a_canary(parts: Parts) -> tuple[Watchdog, Callable[[], None]]:
    """A watchdog whose canary is under way, and what ends the canary's time without an answer."""
    sent, over = threading.Event(), threading.Event()

    def send() -> Any:
        sent.set()
        over.wait()
        raise TimeoutError

    def run_out_of_time() -> None:
        over.set()
        canary = watchdog._canary_answer
        assert canary and isinstance(canary.exception(30), TimeoutError)

    parts.canary.send = send
    watchdog = _watchdog(parts)
    _look(watchdog, sent)
    return watchdog, run_out_of_time


def _counting(answers: Iterator[Any], times: int) -> tuple[Any, threading.Event]:
    """A function that gives or raises one answer after the other, and what says that it was called so often."""
    called, enough = [0], threading.Event()

    def call(*_: object) -> Any:
        called[0] += 1
        if called[0] >= times:
            enough.set()
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return call, enough


def _forever(*answers: object) -> Iterator[object]:
    while True:
        yield from answers


@pytest.mark.parametrize(("image_seconds", "pause"), [(0.001, 2), (0.03, 3), (0.07, 7), (0.2, 8), (1, 20)])
def test_canaries_take_a_hundredth_of_a_devices_time_and_of_a_slow_ones_a_twentieth(
    image_seconds: float, pause: float
) -> None:
    assert canary_pause(image_seconds) == pytest.approx(pause)


@pytest.mark.parametrize(("answer", "age"), [("right", 0), ("crowded out", 3600)])
def test_canaries_follow_each_other_and_the_age_of_the_last_right_one_is_known(
    parts: Parts, answer: str, age: float
) -> None:
    parts.metrics._canary_answered_at -= 3600
    parts.canary.send, enough = _counting(_forever(answer), 5)
    _look(_watchdog(parts), enough)
    assert parts.metrics.registry.get_sample_value("embed_canary_age_seconds") == pytest.approx(age, abs=60)


def test_a_canary_is_sent_at_once_and_the_next_one_only_after_the_pause(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "canary_pause", lambda _: 3600.0)
    parts.canary.send, twice = _counting(_forever("right"), 2)
    watchdog = _watchdog(parts)
    watchdog.look()
    answer = watchdog._canary_answer
    assert answer and answer.result(30) == "right"
    _look(watchdog)
    assert watchdog._canary_answer is None and not twice.is_set()
    assert parts.triton.canary_seconds == 3600
    watchdog._canary_at -= 3600
    _look(watchdog, twice)


@pytest.mark.parametrize(
    "answers", [("crowded out",), ("refused", "right"), ("refused", "crowded out"), (TimeoutError(), "right")], ids=str
)
def test_a_busy_or_stumbling_service_goes_on(parts: Parts, answers: tuple[object, ...]) -> None:
    parts.triton.works = True
    parts.canary.send, enough = _counting(_forever(*answers), 9)
    _look(_watchdog(parts), enough)


def test_a_canary_waits_its_turn_while_batches_come_and_go(parts: Parts) -> None:
    late, enough = _counting(_forever(TimeoutError()), 9)

    def send() -> Any:
        parts.triton.counted["embed_image"] += 1
        return late()

    parts.canary.send = send
    _look(_watchdog(parts), enough)


def test_a_canary_is_lost_where_batches_have_come_since_it_was_sent_and_come_no_more(parts: Parts) -> None:
    """As where all stubs stand still just then: with the next canary it would be seen too late."""
    watchdog, run_out_of_time = _waiting_for_a_canary(parts)
    parts.triton.counted["embed_image"] += 1
    watchdog.look()
    watchdog._moved_at -= room._STILL_SECONDS
    run_out_of_time()
    with pytest.raises(TritonFailure, match="lost on its way"):
        watchdog.look()


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        (("refused",), "one canary after another"),
        ((ServiceFailure("the canary came back with"),), "the canary came back with"),
        ((TimeoutError(),), "lost on its way"),
        ((ConnectionResetError(),), "lost on its way"),
    ],
)
def test_a_canary_that_does_not_come_back_is_a_failure(parts: Parts, answers: tuple[object, ...], reason: str) -> None:
    answer, _ = _counting(_forever(*answers), LOOKS)

    def send() -> Any:
        parts.triton.counted["siglip"] += 1  # the service's own requests go on, whatever becomes of images
        return answer()

    parts.canary.send = send
    with pytest.raises(ServiceFailure, match=reason):
        _look(_watchdog(parts), threading.Event())


@pytest.mark.parametrize("seconds", [canary_room._SECONDS, 3600.0])
def test_the_time_in_which_the_process_was_frozen_is_nobodys_failure(parts: Parts, seconds: float) -> None:
    """As by a container's pause: clocks go on, and a canary under way is over its time."""
    watchdog, run_out_of_time = _waiting_for_a_canary(parts)
    watchdog._stages._looked_at -= seconds
    parts.metrics.longest_stage = lambda: 3600.0  # type: ignore[method-assign]
    watchdog.look()
    run_out_of_time()
    watchdog.look()
    watchdog._stages.awake_since -= 3600
    with pytest.raises(ServiceFailure, match="has not ended"):
        watchdog.look()


def test_a_freeze_within_a_look_is_nobodys_failure(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    watchdog, frozen = _watchdog(parts), [0.0]

    def get_after_a_freeze(*_: object) -> tuple[int, bytes]:
        frozen.append(3600.0)
        return 200, b""

    parts.client.get = get_after_a_freeze
    parts.metrics.longest_stage = lambda: 3600.0  # type: ignore[method-assign]
    monkeypatch.setattr(hangs, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + frozen[-1]))
    watchdog.look()


def test_an_encoder_that_fails_batch_after_batch_is_a_failure(parts: Parts) -> None:
    watchdog = _watchdog(parts)
    parts.encoder.failures_in_a_row = 1
    watchdog.look()
    parts.encoder.failures_in_a_row = 2
    with pytest.raises(ServiceFailure, match="the encoder on cuda:1 fails"):
        watchdog.look()


@pytest.mark.parametrize(("seconds", "hangs"), [(29.0, False), (31.0, True)])
def test_a_stage_may_take_five_full_batches_in_each_lane(parts: Parts, seconds: float, hangs: bool) -> None:
    watchdog = _watchdog(parts)
    parts.metrics.longest_stage = lambda: seconds  # type: ignore[method-assign]
    if hangs:
        with pytest.raises(ServiceFailure, match="has not ended after 30 s"):
            watchdog.look()
    else:
        watchdog.look()


def test_a_front_end_may_miss_an_answer_but_not_three(parts: Parts) -> None:
    watchdog = _watchdog(parts)
    parts.client.get, _ = _counting(_forever(TimeoutError(), TimeoutError(), (200, b"")), LOOKS)
    for _ in range(9):
        watchdog.look()
    parts.client.get, _ = _counting(_forever(TimeoutError()), LOOKS)
    watchdog.look()
    watchdog.look()
    with pytest.raises(ServiceFailure, match="tritonserver does not answer"):
        watchdog.look()
