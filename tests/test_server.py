"""One tritonserver after another: which end of one is the service's own."""

import threading
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from service import server
from service.errors import ServiceFailure, StartupFault
from service.metrics import Metrics
from service.pytriton_compat.triton import TritonFailure

DIED = TritonFailure("it has died")
CANNOT_START = StartupFault("it cannot start")
NOT_ANEW = TritonFailure("tritonserver could not be started: it cannot start")


def _serve(
    monkeypatch: pytest.MonkeyPatch, ends: Iterable[Exception | None], shutdown: threading.Event | None = None
) -> Metrics:
    """Have one tritonserver after another end so, None as it should."""
    parts: Any = SimpleNamespace(metrics=Metrics())
    left = iter(ends)

    def serve_by_triton(*_: object) -> None:
        if (end := next(left)) is not None:
            raise end

    monkeypatch.setattr(server, "_PAUSE_SECONDS", 0)
    monkeypatch.setattr(server, "serve_by_triton", serve_by_triton)
    server._serve(parts, shutdown or threading.Event())
    assert not list(left)
    metrics: Metrics = parts.metrics
    return metrics


@pytest.mark.parametrize("again", [DIED, CANNOT_START, OSError("no space left")], ids=repr)
def test_one_that_fails_makes_place_for_another_and_is_counted(
    monkeypatch: pytest.MonkeyPatch, again: Exception
) -> None:
    """Also one that cannot start: the port may be free, or the disk have room, a moment later."""
    metrics = _serve(monkeypatch, [DIED, again, None])
    assert metrics.registry.get_sample_value("embed_triton_restarts_total") == 2


ENDS: dict[str, tuple[list[Exception | None], bool, Exception]] = {
    "the first cannot start": ([CANNOT_START], False, CANNOT_START),
    # Lanes may be inside the model by then, so it is the end of a service that was running.
    "no other can start": ([DIED] + [CANNOT_START] * 5, False, NOT_ANEW),
    "the disk is full from then on": ([DIED] + [OSError("it cannot start")] * 5, False, NOT_ANEW),
    "it fails while the service ends": ([DIED], True, DIED),
    "another part fails": ([ServiceFailure("the encoder")], False, ServiceFailure("the encoder")),
    "one after another fails": ([DIED] * 6, False, DIED),
    "what nobody has foreseen": ([DIED, RuntimeError("odd")], False, RuntimeError("odd")),
}


@pytest.mark.parametrize(
    ("minutes", "is_the_end"),
    [
        ((0, 1, 2, 3, 4, 10, 11, 12, 13, 14, 20), False),
        ((0, 1, 2, 3, 4, 9.9), True),
        ((0, 1, 2, 3, 4, 10, 10.9), True),
    ],
)
def test_the_next_one_has_to_wait_until_the_first_is_long_ago(
    monkeypatch: pytest.MonkeyPatch, minutes: tuple[float, ...], is_the_end: bool
) -> None:
    """Five in ten minutes."""
    now = [0.0]
    monkeypatch.setattr(server, "time", SimpleNamespace(monotonic=lambda: 60 * now[0]))

    def fail() -> Iterator[Exception | None]:
        for now[0] in minutes:
            yield DIED
        if not is_the_end:
            yield None

    if is_the_end:
        with pytest.raises(TritonFailure):
            _serve(monkeypatch, fail())
    else:
        assert _serve(monkeypatch, fail()).registry.get_sample_value("embed_triton_restarts_total") == len(minutes)


def test_a_signal_in_the_pause_before_another_one_is_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    class Signalled(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            self.set()
            return True

    _serve(monkeypatch, [DIED], Signalled())


@pytest.mark.parametrize("name", ENDS)
def test_what_another_one_cannot_mend_ends_the_service(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    ends, is_asked, raised = ENDS[name]
    shutdown = threading.Event()
    if is_asked:
        shutdown.set()
    with pytest.raises(type(raised), match=f"^{raised}$") as caught:
        _serve(monkeypatch, ends, shutdown)
    assert type(caught.value) is type(raised)
