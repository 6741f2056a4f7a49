"""Every row gets the embedding of its own image or its own fault, whatever befalls the others."""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from service.decode import Decoder
from service.errors import CorruptImage, EmptyInput, Fault, InternalFault, InvalidBase64, UnsupportedFormat
from service.pipeline import Embedding, Pipeline, PixelEncoder, Row
from service.preprocess import Preprocessor
from tests.images import encode

SIDE = 8
BAD: list[tuple[Row, type[Fault]]] = [
    (Row(b"", False), EmptyInput),
    (Row(b"not an image", False), UnsupportedFormat),
    (Row(b"@@@@", True), InvalidBase64),
    (Row(encode(Image.new("RGB", (9, 9)), "PNG")[:42], False), CorruptImage),
]


class MeanColour:
    """An embedding that shows whose it is: the image's mean colour. Keeps the sizes of the batches it is given."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def encode(self, pixels: npt.NDArray[np.uint8]) -> Embedding:
        assert pixels.dtype == np.uint8 and pixels.shape[1:] == (SIDE, SIDE, 3)
        self.batches.append(len(pixels))
        means: Embedding = pixels.mean(axis=(1, 2)).astype(np.float32)
        return means


class Broken:
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


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as executor:
        yield executor


def _pipeline(encoder: PixelEncoder, threads: ThreadPoolExecutor) -> Pipeline:
    preprocessor = Preprocessor(SIDE, Image.Resampling.BICUBIC, (1.0,) * 3, (0.0,) * 3)
    return Pipeline(Decoder(2**20, 10**6), preprocessor, encoder, threads)


def _readable(outcomes: Sequence[Embedding | Fault]) -> list[list[int] | type[Fault]]:
    return [type(outcome) if isinstance(outcome, Fault) else outcome.astype(int).tolist() for outcome in outcomes]


@pytest.mark.parametrize("workers", [1, 8])
def test_each_row_has_its_own_outcome_in_its_place(workers: int) -> None:
    rows, expected = _mixed(60)
    encoder = MeanColour()
    with ThreadPoolExecutor(workers) as threads:
        assert _readable(_pipeline(encoder, threads).embed(rows)) == expected
    assert encoder.batches == [40]


def test_a_batch_of_sound_rows_is_encoded_whole(threads: ThreadPoolExecutor) -> None:
    outcomes = _pipeline(MeanColour(), threads).embed([_good(i) for i in range(7)])
    assert _readable(outcomes) == [_colour(i) for i in range(7)]
    assert all(isinstance(outcome, np.ndarray) and outcome.dtype == np.float32 for outcome in outcomes)


def test_batches_in_several_threads_do_not_mix(threads: ThreadPoolExecutor) -> None:
    pipeline = _pipeline(MeanColour(), threads)
    batches = [range(start, start + 9) for start in range(0, 90, 9)]
    with ThreadPoolExecutor(4) as lanes:
        outcomes = list(lanes.map(lambda batch: pipeline.embed([_good(i) for i in batch]), batches))
    assert [_readable(batch) for batch in outcomes] == [[_colour(i) for i in batch] for batch in batches]


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


def test_a_broken_preprocessor_fails_its_row_alone(
    threads: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    resize = Preprocessor.resize_into

    def brittle(self: Preprocessor, image: Image.Image, pixels: npt.NDArray[np.uint8]) -> None:
        if image.getpixel((0, 0)) == tuple(_colour(2)):
            raise MemoryError("/secret/path")
        resize(self, image, pixels)

    monkeypatch.setattr(Preprocessor, "resize_into", brittle)
    outcomes = _pipeline(MeanColour(), threads).embed([_good(i) for i in range(4)])
    assert _readable(outcomes) == [_colour(0), _colour(1), InternalFault, _colour(3)]
    assert "secret" not in str(outcomes[2]) and "MemoryError" in caplog.text
