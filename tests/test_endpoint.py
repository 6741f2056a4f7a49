"""Requests in, responses out: parameters, shapes, the rows' way back, and which fault has which status."""

import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest

from service.endpoint import Parameters, embed_image, embed_pixel_values
from service.errors import CorruptImage, EmptyInput, Fault, InternalFault
from service.metrics import Metrics
from service.pipeline import Embedding, Pipeline, Row
from service.pytriton_compat.lane import InferenceCallable, Request, Response

Given = Mapping[str, str | int | bool]

DEFAULTS = Parameters(base64_encoded=False, normalize=False, embed_model="siglip")
FAULTS: dict[bytes, Fault] = {
    b"corrupt": CorruptImage("it is cut"),
    b"empty": EmptyInput("nothing"),
    b"ours": InternalFault("no idea"),
}
SIDE = 4
OWN_MARK = "0123456789abcdef"


class FakePipeline:
    """An embedding is the number that the row's bytes spell, and whether they were base64; three words are faults."""

    def __init__(self) -> None:
        self.batches: list[list[Row]] = []

    def embed(self, rows: Sequence[Row]) -> list[Embedding | Fault]:
        self.batches.append(list(rows))
        return [FAULTS.get(bytes(row.data)) or _embedding(int(row.data), row.base64_encoded) for row in rows]


class FakeEncoder:
    """An embedding is the first pixel value of each channel."""

    image_size = SIDE

    def encode_pixel_values(self, pixel_values: npt.NDArray[np.float32]) -> Embedding:
        assert pixel_values.dtype == np.float32
        return pixel_values[:, :, 0, 0]


class Broken:
    """Neither a pipeline nor an encoder that works."""

    image_size = SIDE

    def embed(self, rows: Sequence[Row]) -> list[Embedding | Fault]:
        raise RuntimeError("/secret/path")

    def encode_pixel_values(self, pixel_values: npt.NDArray[np.float32]) -> Embedding:
        raise RuntimeError("/secret/path")


def _embedding(number: int, base64_encoded: bool = False) -> Embedding:
    return np.array([number, 2 * number, 3.0 if base64_encoded else 0.0], np.float32)


def _embed_image(
    pipeline: object, defaults: Parameters = DEFAULTS, metrics: Metrics | None = None
) -> InferenceCallable:
    return embed_image(cast(Pipeline, pipeline), defaults, metrics or Metrics())


def _images(*rows: object, parameters: Given = MappingProxyType({}), request_id: str = "") -> Request:
    column = np.array([str(row).encode() for row in rows], np.object_).reshape(-1, 1)
    return Request({"INPUT_IMAGE": column}, parameters, request_id)


def _pixels(*values: float, parameters: Given = MappingProxyType({})) -> Request:
    pixel_values = np.stack([np.full((3, SIDE, SIDE), value, np.float32) for value in values])
    return Request({"PIXEL_VALUES": pixel_values}, parameters)


def _fault(response: Response) -> str:
    """A fault response as `STATUS code: message`, which is all that it may hold."""
    assert response.fault is not None and not response.tensors
    return " ".join(response.fault)


def _rows(response: Response) -> list[list[float]]:
    assert response.fault is None and set(response.tensors) == {"EMBEDDING"}, response.fault
    embeddings = response.tensors["EMBEDDING"]
    assert embeddings.dtype == np.float32 and embeddings.ndim == 2
    rows: list[list[float]] = embeddings.tolist()
    return rows


@pytest.mark.parametrize("given", [{}, {"embed_model": "siglip"}, {"normalize": False}], ids=str)
def test_without_parameters_the_defaults_hold(given: Given) -> None:
    assert _rows(_embed_image(FakePipeline())([_images(3, parameters=given)])[0]) == [[3, 6, 0]]


@pytest.mark.parametrize("default", [False, True])
@pytest.mark.parametrize("asked", [False, True, None])
@pytest.mark.parametrize("name", ["base64_encoded", "normalize"])
def test_a_request_overrides_either_default(name: str, asked: bool | None, default: bool) -> None:
    defaults = Parameters(**{**vars(DEFAULTS), name: default})
    request = _images(3, parameters={} if asked is None else {name: asked})
    (row,) = _rows(_embed_image(FakePipeline(), defaults)([request])[0])
    holds = default if asked is None else asked
    expected = _embedding(3, base64_encoded=holds and name == "base64_encoded")
    assert row == pytest.approx(expected / np.linalg.norm(expected) if holds and name == "normalize" else expected)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"base64": True}, "invalid_parameter: there is no parameter 'base64'; known are base64_encoded, normalize"),
        ({"base64_encoded": "true"}, "invalid_parameter: base64_encoded must be of type bool, not 'true'"),
        ({"base64_encoded": 1}, "invalid_parameter: base64_encoded must be of type bool, not 1"),
        ({"normalize": 0}, "invalid_parameter: normalize must be of type bool, not 0"),
        ({"embed_model": True}, "invalid_parameter: embed_model must be of type str, not True"),
        ({"embed_model": "clip\n"}, r"unknown_model: there is no model 'clip\n'; served: siglip"),
        ({"embed_model": ""}, "unknown_model: there is no model ''; served: siglip"),
    ],
    ids=str,
)
@pytest.mark.parametrize("pixel_values", [False, True])
def test_wrong_parameters_are_the_fault_of_their_request_alone(given: Given, line: str, pixel_values: bool) -> None:
    make = _pixels if pixel_values else _images
    endpoint = embed_pixel_values(FakeEncoder(), DEFAULTS, OWN_MARK) if pixel_values else _embed_image(FakePipeline())
    before, wrong, after = endpoint([make(1), make(2, parameters=given), make(3)])
    assert _fault(wrong).startswith(f"INVALID_ARG {line}")
    assert [_rows(before)[0][0], _rows(after)[0][0]] == [1, 3]


@pytest.mark.parametrize("shape", [(1,), (6,), (0,), (), (0, 1), (3, 2), (2, 0), (2, 1, 3)], ids=str)
def test_no_shape_of_images_is_trusted(shape: tuple[int, ...]) -> None:
    pipeline = FakePipeline()
    wrong, right = _embed_image(pipeline)([Request({"INPUT_IMAGE": np.full(shape, b"5", np.object_)}, {}), _images(7)])
    assert _fault(wrong) == f"INVALID_ARG invalid_tensor: INPUT_IMAGE must have the shape [rows, 1], not {list(shape)}"
    assert _rows(right) == [[7, 14, 0]]
    assert pipeline.batches == [[Row(b"7", False)]]


def test_a_refused_batch_leaves_nothing_for_the_garbage_collection(uncollected: None) -> None:
    images = np.full((6,), b"5", np.object_)
    kept = weakref.ref(images)
    _embed_image(FakePipeline())([Request({"INPUT_IMAGE": images}, {})])
    del images
    assert kept() is None


@pytest.mark.parametrize("shape", [(3, 4, 4), (0, 3, 4, 4), (1, 4, 4, 3), (1, 3, 4, 5), (1, 1, 4, 4), (48,)], ids=str)
def test_no_shape_of_pixel_values_is_trusted(shape: tuple[int, ...]) -> None:
    endpoint = embed_pixel_values(FakeEncoder(), DEFAULTS, OWN_MARK)
    wrong, right = endpoint([Request({"PIXEL_VALUES": np.zeros(shape, np.float32)}, {}), _pixels(7)])
    expected = "INVALID_ARG invalid_tensor: PIXEL_VALUES must have the shape [rows, 3, 4, 4], not"
    assert _fault(wrong) == f"{expected} {list(shape)}"
    assert _rows(right) == [[7, 7, 7]]


def test_rows_find_their_way_back_to_their_requests() -> None:
    pipeline = FakePipeline()
    requests = [
        _images(1, 2),
        _images(3, parameters={"base64_encoded": True}),
        _images("corrupt"),
        _images(4, 5, 6),
        _images(7, parameters={"nonsense": 1}),
        _images(8, "empty", 9, "corrupt"),
        _images("ours"),
        _images(10),
    ]
    first, second, third, fourth, fifth, sixth, seventh, eighth = _embed_image(pipeline)(requests)
    assert len(pipeline.batches) == 1
    assert _rows(first) == [[1, 2, 0], [2, 4, 0]]
    assert _rows(second) == [[3, 6, 3]]
    assert _fault(third) == "INVALID_ARG corrupt_image: it is cut"
    assert _rows(fourth) == [[4, 8, 0], [5, 10, 0], [6, 12, 0]]
    assert _fault(fifth).startswith("INVALID_ARG invalid_parameter: ")
    assert _fault(sixth) == "INVALID_ARG empty_input: row 1: nothing"
    assert _fault(seventh) == "INTERNAL internal_error: no idea"
    assert _rows(eighth) == [[10, 20, 0]]


def test_unit_norms_only_for_the_requests_that_ask() -> None:
    plain, unit = _embed_image(FakePipeline())([_images(3, 4), _images(3, 0, 10**9, parameters={"normalize": True})])
    assert _rows(plain) == [[3, 6, 0], [4, 8, 0]]
    expected = [1 / 5**0.5, 2 / 5**0.5, 0.0]
    np.testing.assert_allclose(_rows(unit), np.array([expected, [0.0] * 3, expected]), rtol=1e-6)


def test_prepared_pixels_find_their_way_back_too() -> None:
    requests = [_pixels(1, 2), _pixels(3, parameters={"normalize": True}), _pixels(4)]
    first, second, third = embed_pixel_values(FakeEncoder(), DEFAULTS, OWN_MARK)(requests)
    assert _rows(first) == [[1, 1, 1], [2, 2, 2]] and _rows(third) == [[4, 4, 4]]
    np.testing.assert_allclose(_rows(second), [[1 / 3**0.5] * 3], rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_embedding_that_is_not_finite_is_the_fault_of_its_row(value: float) -> None:
    wrong, right = embed_pixel_values(FakeEncoder(), DEFAULTS, OWN_MARK)([_pixels(1, value), _pixels(3)])
    assert _fault(wrong).startswith("INVALID_ARG invalid_tensor: row 1: PIXEL_VALUES must be finite")
    assert _rows(right) == [[3, 3, 3]]


@pytest.mark.parametrize(
    "answer",
    [
        lambda: _embed_image(Broken())([_images(1), _images(2, 3)]),
        lambda: embed_pixel_values(Broken(), DEFAULTS, OWN_MARK)([_pixels(1), _pixels(2, 3)]),
        lambda: _embed_image(FakePipeline())([_images(1), Request({}, {})]),
    ],
    ids=["pipeline", "encoder", "request"],
)
def test_whatever_breaks_is_logged_and_told_to_nobody(
    answer: Callable[[], Sequence[Response]], caplog: pytest.LogCaptureFixture
) -> None:
    assert {_fault(response) for response in answer()} == {
        "INTERNAL internal_error: the request could not be answered",
    }
    assert "Traceback" in caplog.text and "a batch of 2 requests failed" in caplog.text


def test_each_refused_request_is_one_event_with_its_id_and_code(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    requests = [
        _images(1, request_id="good"),
        _images(2, "corrupt", request_id="bad image"),
        _images(3, parameters={"nonsense": 1}, request_id="x" * 1000),
        _images("ours"),
    ]
    _embed_image(FakePipeline())(requests)
    embed_pixel_values(FakeEncoder(), DEFAULTS, OWN_MARK)(
        [_pixels(1), _pixels(2, parameters={"embed_model": OWN_MARK})]
    )
    assert [(record.levelno, record.message) for record in caplog.records] == [
        (logging.INFO, "corrupt_image: row 1: it is cut"),
        (logging.INFO, "invalid_parameter: there is no parameter 'nonsense'; known are base64_encoded, normalize,"
                       " embed_model"),
        (logging.INFO, "internal_error: no idea"),
    ]  # fmt: skip
    fields = [vars(record) for record in caplog.records]
    assert [event["code"] for event in fields] == ["corrupt_image", "invalid_parameter", "internal_error"]
    assert [event.get("request_id") for event in fields] == ["bad image", "x" * 128, None]


def test_no_client_can_keep_a_refusal_out_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    guessed = {"embed_model": "heartbeat"}
    _embed_image(FakePipeline())([_images(1, parameters=guessed), _images(1, parameters={"embed_model": OWN_MARK})])
    embed_pixel_values(FakeEncoder(), DEFAULTS, OWN_MARK)([_pixels(1, parameters=guessed)])
    assert [vars(record)["code"] for record in caplog.records] == ["unknown_model"] * 3


def test_what_never_becomes_a_row_is_counted_once_a_request() -> None:
    metrics = Metrics()
    _embed_image(FakePipeline(), metrics=metrics)([_images(1, 2), _images("corrupt"), _images(3, parameters={"x": 1})])
    _embed_image(Broken(), metrics=metrics)([_images(1), _images(2, 3)])
    value = metrics.registry.get_sample_value
    codes = ("ok", "corrupt_image", "invalid_parameter", "internal_error")
    # The pipeline counts the rows, and this one is a fake.
    assert [value("embed_images_total", {"code": code}) for code in codes] == [0, None, 1, 2]


def test_a_batch_without_a_readable_request_never_reaches_the_pipeline() -> None:
    pipeline = FakePipeline()
    assert [_fault(response)[:11] for response in _embed_image(pipeline)([_images()])] == ["INVALID_ARG"]
    assert pipeline.batches == [] and _embed_image(pipeline)([]) == []
