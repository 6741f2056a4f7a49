"""Every row gets the embedding of its own image or its own fault, whatever befalls the others and whoever helps."""

import base64
import logging
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from service.cache import EmbeddingCache
from service.cores import Cores
from service.errors import CorruptImage, EmptyInput, Fault, InternalFault, InvalidBase64, UnsupportedFormat
from service.metrics import Metrics
from service.pipeline import Embedding, Pipeline, PixelEncoder, Row
from service.preprocessing.decode import Decoder
from service.preprocessing.preprocess import Preprocessor
from tests.images import SMALL_NAMES, encode, oriented, sample

SIDE = 8
BAD: list[tuple[Row, type[Fault]]] = [
    (Row(b"", False), EmptyInput),
    (Row(b"not an image", False), UnsupportedFormat),
    (Row(b"@@@@", True), InvalidBase64),
    (Row(encode(Image.new("RGB", (9, 9)), "PNG")[:42], False), CorruptImage),
]


class Roomy:
    """What every encoder has: room for pixels, here of a colour that is no image's."""

    def room_for(self, count: int) -> npt.NDArray[np.uint8]:
        return np.full((count, SIDE, SIDE, 3), 111, np.uint8)


class MeanColour(Roomy):
    """An embedding that shows whose it is: the image's mean colour. Keeps the sizes of the batches it is given."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def encode(self, pixels: npt.NDArray[np.uint8]) -> Embedding:
        assert pixels.dtype == np.uint8 and pixels.shape[1:] == (SIDE, SIDE, 3)
        self.batches.append(len(pixels))
        means: Embedding = pixels.mean(axis=(1, 2)).astype(np.float32)
        return means


class Unchanged(Roomy):
    """An embedding is the pixels themselves."""

    def encode(self, pixels: npt.NDArray[np.uint8]) -> Embedding:
        return pixels.reshape(len(pixels), -1).astype(np.float32)


class Broken(Roomy):
    """An encoder whose device is gone."""

    def encode(self, pixels: npt.NDArray[np.uint8]) -> Embedding:
        raise RuntimeError("CUDA error at /secret/path")


def _colour(number: int) -> list[int]:
    return [number * 5 % 256, 255 - number, number * 31 % 256]


def _good(number: int) -> Row:
    """An image in a colour of its own, and of a size of its own, so that some take longer to decode."""
    image = Image.new("RGB", (10 + 37 * (number % 7), 300 - 41 * (number % 5)), tuple(_colour(number)))
    return Row(encode(image, "PNG"), False)


def _mixed(count: int) -> tuple[list[Row], list[list[int] | type[Fault]]]:
    """Rows of which each third is bad, and what is to come of each."""
    pairs: list[tuple[Row, list[int] | type[Fault]]] = [
        BAD[i // 3 % len(BAD)] if i % 3 == 1 else (_good(i), _colour(i)) for i in range(count)
    ]
    return [row for row, _ in pairs], [outcome for _, outcome in pairs]


class Idle(Executor):
    """Helpers that never come."""

    def __init__(self) -> None:
        self.asked: list[Future[Any]] = []

    def submit(self, *_: Any, **__: Any) -> Future[Any]:
        self.asked.append(Future())
        return self.asked[-1]


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as executor:
        yield executor


def _pipeline(
    encoder: PixelEncoder,
    helpers: Executor,
    cores: int = 4,
    cache: EmbeddingCache | None = None,
    metrics: Metrics | None = None,
) -> Pipeline:
    preprocessor = Preprocessor(SIDE, Image.Resampling.BICUBIC, (1.0,) * 3, (0.0,) * 3)
    decoder = Decoder(2**20, 10**6, preprocessor.least_side)
    return Pipeline(decoder, preprocessor, encoder, Cores(cores), helpers, metrics or Metrics(), cache)


def _readable(outcomes: Sequence[Embedding | Fault]) -> list[list[int] | type[Fault]]:
    return [type(outcome) if isinstance(outcome, Fault) else outcome.astype(int).tolist() for outcome in outcomes]


def _base64(row: Row) -> Row:
    return Row(base64.b64encode(row.data), True)


def test_rows_without_an_image_wait_for_nobody() -> None:
    """Not even for a core, of which there is none left here."""
    pipeline = _pipeline(MeanColour(), Idle(), cores=1)
    with pipeline._cores.share():
        assert _readable(pipeline.embed([Row(b"", False), Row(b"@@@@", True)])) == [EmptyInput, InvalidBase64]


@pytest.mark.parametrize(("workers", "cores"), [(1, 1), (1, 8), (8, 2), (8, 8)])
def test_each_row_has_its_own_outcome_in_its_place(workers: int, cores: int) -> None:
    rows, expected = _mixed(60)
    encoder = MeanColour()
    with ThreadPoolExecutor(workers) as threads:
        assert _readable(_pipeline(encoder, threads, cores).embed(rows)) == expected
    assert encoder.batches == [40]


def test_faults_leave_nothing_for_the_garbage_collection(threads: ThreadPoolExecutor, uncollected: None) -> None:
    rows, _ = _mixed(20)
    outcomes = _pipeline(MeanColour(), threads).embed(rows)
    faults = [weakref.ref(outcome) for outcome in outcomes if isinstance(outcome, Fault)]
    del outcomes
    # A helper's thread lets go of its work only after it has given the result.
    deadline = time.monotonic() + 60
    assert faults
    while any(fault() for fault in faults):
        assert time.monotonic() < deadline


def test_an_image_is_embedded_upright(threads: ThreadPoolExecutor) -> None:
    """Orientation 6 is that of a camera that was held upright: its image is to be turned clockwise."""
    outcomes = _pipeline(Unchanged(), threads).embed([Row(oriented(each).data, False) for each in (1, 6)])
    as_stored, upright = (np.reshape(outcome, (SIDE, SIDE, 3)) for outcome in outcomes)  # type: ignore[arg-type]
    # Their passes, first the height and first the width, round differently.
    np.testing.assert_allclose(upright, np.rot90(as_stored, -1), atol=1)
    assert np.abs(upright - as_stored).max() > 10


def test_helpers_and_cores_change_no_bit(threads: ThreadPoolExecutor) -> None:
    rows = [Row(sample(name).data, False) for name in SMALL_NAMES] * 2
    alone, *others = (_pipeline(MeanColour(), threads, cores).embed(rows) for cores in (1, 2, 16))
    assert not any(isinstance(outcome, Fault) for outcome in alone)
    for other in others:
        np.testing.assert_array_equal(other, alone)  # type: ignore[arg-type]


def test_a_batch_waits_for_no_helper_that_never_comes() -> None:
    rows, expected = _mixed(30)
    helpers = Idle()
    assert _readable(_pipeline(MeanColour(), helpers, cores=4).embed(rows)) == expected
    assert len(helpers.asked) == 3 and all(helper.cancelled() for helper in helpers.asked)


def test_a_batch_asks_for_no_more_helpers_than_it_has_rows() -> None:
    helpers = Idle()
    pipeline = _pipeline(MeanColour(), helpers, cores=8)
    for rows, asked in (([_good(1)], 0), ([_good(1), BAD[0][0], _good(2)], 1), ([BAD[0][0]], 1), ([], 1)):
        pipeline.embed(rows)
        assert len(helpers.asked) == asked


def test_helpers_kept_busy_by_others_lose_no_row() -> None:
    rows, expected = _mixed(30)
    release = threading.Event()
    with ThreadPoolExecutor(1) as helpers:
        others = helpers.submit(release.wait, 60)
        try:
            pipeline = _pipeline(MeanColour(), helpers)
            assert [_readable(pipeline.embed(rows)) for _ in range(3)] == [expected] * 3
            assert not others.done()
        finally:
            release.set()


def test_helpers_work_at_the_same_time_as_the_caller(
    threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three images that are decoded only together."""
    together, decode = threading.Barrier(3), Decoder.decode

    def meet(self: Decoder, data: bytes) -> Any:
        together.wait(timeout=60)
        return decode(self, data)

    monkeypatch.setattr(Decoder, "decode", meet)
    outcomes = _pipeline(MeanColour(), threads, cores=3).embed([_good(i) for i in range(3)])
    assert _readable(outcomes) == [_colour(i) for i in range(3)]


@pytest.mark.parametrize("cached", [False, True])
def test_batches_in_several_threads_do_not_mix(threads: ThreadPoolExecutor, cached: bool) -> None:
    pipeline = _pipeline(MeanColour(), threads, cache=EmbeddingCache(2**20) if cached else None)
    batches = [range(start, start + 9) for start in range(0, 90, 9)] * 2
    with ThreadPoolExecutor(4) as lanes:
        outcomes = list(lanes.map(lambda batch: pipeline.embed([_good(i) for i in batch]), batches))
    assert [_readable(batch) for batch in outcomes] == [[_colour(i) for i in batch] for batch in batches]


def test_an_image_is_encoded_once_and_then_remembered(threads: ThreadPoolExecutor) -> None:
    encoder = MeanColour()
    pipeline = _pipeline(encoder, threads, cache=EmbeddingCache(2**20))
    one, two, three = (_good(number) for number in (1, 2, 3))
    batches: list[tuple[list[Row], list[int | type[Fault]], list[int]]] = [
        ([one, two, one, _base64(one), BAD[1][0], _base64(two)], [1, 2, 1, 1, UnsupportedFormat, 2], [2]),
        ([_base64(two), three, one, three], [2, 3, 1, 3], [2, 1]),
        ([one, _base64(three)], [1, 3], [2, 1]),
    ]
    for rows, answers, encoded in batches:
        expected = [_colour(answer) if isinstance(answer, int) else answer for answer in answers]
        assert _readable(pipeline.embed(rows)) == expected
        assert encoder.batches == encoded


def test_a_cache_changes_no_outcome(threads: ThreadPoolExecutor) -> None:
    rows = _mixed(40)[0] + [Row(sample(name).data, False) for name in SMALL_NAMES]
    cached = _pipeline(MeanColour(), threads, cache=EmbeddingCache(4_000))  # room for a few
    plain = [str(outcome) for outcome in _pipeline(MeanColour(), threads).embed(rows)]
    for _ in range(2):
        assert [str(outcome) for outcome in cached.embed(rows + rows[::-1])] == plain + plain[::-1]


def test_faults_are_not_remembered(threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = _pipeline(MeanColour(), threads, cache=EmbeddingCache(2**20))
    with monkeypatch.context() as broken:
        broken.setattr(MeanColour, "encode", Broken.encode)
        assert _readable(pipeline.embed([_good(1), _good(1)])) == [InternalFault] * 2
    with monkeypatch.context() as broken:
        broken.setattr(Decoder, "decode", lambda *_: 1 / 0)
        assert _readable(pipeline.embed([_good(1)])) == [InternalFault]
    assert _readable(pipeline.embed([_good(1), BAD[3][0]])) == [_colour(1), CorruptImage]


@pytest.mark.parametrize(("cached", "encoded"), [(False, [5, 1]), (True, [3])])
def test_what_happens_is_measured(threads: ThreadPoolExecutor, cached: bool, encoded: list[int]) -> None:
    metrics = Metrics()
    value = metrics.registry.get_sample_value
    busy: list[float | None] = []

    class Watching(MeanColour):
        def encode(self, pixels: npt.NDArray[np.uint8]) -> Embedding:
            busy.append(value("embed_busy_lanes"))
            return super().encode(pixels)

    cache = EmbeddingCache(2**20) if cached else None
    pipeline = _pipeline(Watching(), threads, cache=cache, metrics=metrics)
    pipeline.embed([_good(1), _good(2), _good(1), BAD[0][0], BAD[3][0], _good(3), _base64(_good(3))])
    pipeline.embed([_good(2), BAD[0][0]])
    decoded = sum(encoded) + 1  # the corrupt one
    assert {
        "ok": value("embed_images_total", {"code": "ok"}),
        "empty": value("embed_images_total", {"code": "empty_input"}),
        "corrupt": value("embed_images_total", {"code": "corrupt_image"}),
        "repeats": value("embed_repeats_total"),
        **{stage: value("embed_stage_seconds_count", {"stage": stage}) for stage in ("decode", "resize")},
    } == {
        "ok": 6,
        "empty": 2,
        "corrupt": 1,
        "repeats": 3 if cached else 0,
        "decode": decoded,
        "resize": sum(encoded),
    }
    assert busy == [1.0] * len(encoded) and value("embed_busy_lanes") == 0


def test_without_a_sound_row_the_encoder_rests(threads: ThreadPoolExecutor) -> None:
    encoder = MeanColour()
    outcomes = _pipeline(encoder, threads).embed([row for row, _ in BAD])
    assert _readable(outcomes) == [fault for _, fault in BAD]
    assert encoder.batches == []


def test_a_broken_encoder_is_the_services_fault_alone(
    threads: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    rows, expected = _mixed(9)
    outcomes = _pipeline(Broken(), threads).embed(rows)
    assert _readable(outcomes) == [outcome if isinstance(outcome, type) else InternalFault for outcome in expected]
    assert all("secret" not in str(outcome) for outcome in outcomes)
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "RuntimeError: CUDA error at /secret/path" in caplog.text and "Traceback" in caplog.text


def test_an_embedding_that_is_not_finite_is_a_fault_of_its_row_and_not_remembered(threads: ThreadPoolExecutor) -> None:
    class Overflowing(MeanColour):
        def encode(self, pixels: npt.NDArray[np.uint8]) -> Embedding:
            means = super().encode(pixels)
            means[1, 2] = np.inf
            return means

    metrics = Metrics()
    pipeline = _pipeline(Overflowing(), threads, cache=EmbeddingCache(2**20), metrics=metrics)
    rows = [_good(number) for number in range(3)]
    assert _readable(pipeline.embed(rows)) == [_colour(0), InternalFault, _colour(2)]
    assert metrics.registry.get_sample_value("embed_images_total", {"code": "internal_error"}) == 1
    (outcome, _) = pipeline.embed([rows[1], _good(3)])
    assert _readable([outcome]) == [_colour(1)]


def test_a_broken_preprocessor_fails_its_row_alone(
    threads: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    resize = Preprocessor.resize_into

    def brittle(self: Preprocessor, square: npt.NDArray[np.uint8], pixels: npt.NDArray[np.uint8], *how: Any) -> None:
        if pixels[0, 0].tolist() == _colour(2):
            raise MemoryError("/secret/path")
        resize(self, square, pixels, *how)

    monkeypatch.setattr(Preprocessor, "resize_into", brittle)
    outcomes = _pipeline(MeanColour(), threads).embed([_good(i) for i in range(4)])
    assert _readable(outcomes) == [_colour(0), _colour(1), InternalFault, _colour(3)]
    assert "secret" not in str(outcomes[2]) and "MemoryError" in caplog.text
