"""What a worker makes of a device that fails or hangs."""

import os
import threading
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from service.bulk.embedder import Embedder, _watch
from service.cores import Cores
from service.health.hangs import StageWatch
from service.metrics import Metrics
from service.model.encoder import Encoder
from tests.bulk.lakes import SETTINGS, drawing
from tests.images import sample


class _Broken(Exception):
    """In place of the end of this process."""


def _fail_at(monkeypatch: pytest.MonkeyPatch, fails: Sequence[bool]) -> None:
    """Let the encoder's next calls fail or not; all that follow do not."""
    encode, left = Encoder.encode, list(fails)

    def fail_or_encode(self: Encoder, pixels: Any) -> Any:
        if left and left.pop(0):
            raise RuntimeError("a device that does not answer")
        return encode(self, pixels)

    def end(code: int) -> None:
        raise _Broken(code)

    monkeypatch.setattr(Encoder, "encode", fail_or_encode)
    monkeypatch.setattr(os, "_exit", end)


def test_what_the_encoder_fails_at_is_tried_again_image_by_image(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawing = sample("jpeg_photo").data
    _fail_at(monkeypatch, [True, False, False, True])  # the batch; the known image; the first, the second image
    first, second, third = embedder.embed([drawing, drawing, drawing])
    assert isinstance(first, np.ndarray) and isinstance(third, np.ndarray)
    assert str(second).startswith("internal_error: ")


def test_a_worker_whose_batch_does_not_end_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    run, codes, over = Encoder._run_batch, list[int](), threading.Event()

    def hang(self: Encoder, images: Any) -> Any:
        if not over.wait(60):
            pytest.fail("nobody has ended it")  # no Exception, which would be taken for the device's
        return run(self, images)

    def end(code: int) -> None:
        codes.append(code)
        over.set()

    monkeypatch.setattr("service.health.hangs._STAGE_SECONDS", 0.3)
    monkeypatch.setattr("service.health.hangs._STAGE_TIMES", 0.0)
    monkeypatch.setattr("service.bulk.embedder._LOOK_SECONDS", 0.1)
    embedder = Embedder(SETTINGS.model_copy(update={"lanes": 3}), Cores(1))
    assert embedder.lanes == 3, "and not the two that one core has"
    monkeypatch.setattr(Encoder, "_run_batch", hang)
    monkeypatch.setattr(os, "_exit", end)
    embedder.embed([drawing(1)])
    assert codes == [1]


def test_time_in_which_a_worker_was_frozen_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds, ends, here = iter([0.0, 1.0, *np.arange(1000.0, 1100.0)]), list[str](), threading.current_thread()

    def monotonic() -> float:
        """Embedders of other tests are still watched, each by a thread."""
        return next(seconds) if threading.current_thread() is here else time.monotonic()

    monkeypatch.setattr("service.health.hangs.time", SimpleNamespace(monotonic=monotonic))
    monkeypatch.setattr("service.bulk.embedder._LOOK_SECONDS", 0.0)
    monkeypatch.setattr("service.bulk.embedder._end", ends.append)
    metrics = Metrics()
    stages = StageWatch(metrics, 0, 0.0)
    monkeypatch.setattr(metrics, "longest_stage", lambda: stages._looked_at)  # since it was made
    _watch(stages)
    assert ends and next(seconds) == 1022.0


def test_a_worker_whose_device_is_broken_ends(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    _fail_at(monkeypatch, [True, True])
    with pytest.raises(_Broken):
        embedder.embed([sample("jpeg_photo").data])
