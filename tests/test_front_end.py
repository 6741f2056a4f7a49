"""What Triton is told of the models, and by whom their batches are answered."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pytriton.model_config.common import TimeoutAction

from service.front_end import _batch_bytes, _bind_models
from service.metrics import Metrics
from service.pipeline import Embedding, Row
from service.pytriton_compat.lane import Request
from service.settings import load_settings


class Device:
    """A pipeline and an encoder in one: an embedding is the device's number, then whether the row was base64."""

    image_size, dimension, lanes = 4, 2, 3

    def __init__(self, number: int) -> None:
        self._number = number

    def embed(self, rows: Sequence[Row]) -> list[Embedding]:
        return [np.array([self._number, row.base64_encoded], np.float32) for row in rows]

    def encode_pixel_values(self, pixel_values: npt.NDArray[np.float32]) -> Embedding:
        return np.full((len(pixel_values), 2), self._number, np.float32)


def _bound(*arguments: str) -> dict[str, SimpleNamespace]:
    """How each model is bound on a machine with two devices."""
    models: dict[str, SimpleNamespace] = {}

    def bind(name: str, infer: Any, inputs: Any, outputs: Any, **rest: Any) -> None:
        models[name] = SimpleNamespace(infer=infer, inputs=inputs, outputs=outputs, **rest)

    devices, settings = [Device(0), Device(1)], load_settings(arguments)
    own = {"facts": {"device": "a, b"}, "metrics": Metrics()}
    triton: Any = SimpleNamespace(bind=bind)
    parts: Any = SimpleNamespace(settings=settings, encoders=devices, pipelines=devices, **own)
    _bind_models(triton, parts, "own mark")
    return models


def _answers(model: SimpleNamespace, name: str, row: Any, **parameters: Any) -> list[list[float]]:
    """Each callable's embedding of the row."""
    request = Request({name: np.array([row])}, parameters)
    answers = [infer([request])[0] for infer in model.infer]
    return [answer.tensors["EMBEDDING"][0].tolist() for answer in answers]


@pytest.mark.parametrize(("arguments", "lanes"), [((), 3), (("--lanes", "2"), 2)])
def test_every_device_has_its_lanes_and_batches_go_to_one_after_the_other(
    arguments: tuple[str, ...], lanes: int
) -> None:
    models = _bound(*arguments)
    assert _answers(models["embed_image"], "INPUT_IMAGE", [b"image"]) == [[0, 0], [1, 0]] * lanes
    pixels = np.zeros((3, 4, 4), np.float32)
    assert _answers(models["siglip"], "PIXEL_VALUES", pixels) == [[0, 0], [1, 1]]


def test_requests_that_do_not_say_get_what_the_settings_say() -> None:
    defaults = ("--default-base64-encoded", "true", "--default-normalize", "true", "--model-alias", "drawings")
    models = _bound(*defaults)
    assert set(models) == {"embed_image", "drawings"}
    asked, length = (models["embed_image"], "INPUT_IMAGE", [b"image"]), 2**0.5
    expected = np.array([[0, 1], [1 / length, 1 / length]] * 3)
    np.testing.assert_allclose(_answers(*asked, embed_model="drawings"), expected)
    assert _answers(*asked, base64_encoded=False, normalize=False) == [[0, 0], [1, 0]] * 3
    told = {"device": "a, b", "default_base64_encoded": "true", "default_normalize": "true"}
    assert [each.parameters for each in models.values()] == [told] * 2


def test_triton_batches_and_queues_as_the_settings_say() -> None:
    batches = ("--max-batch-size", "20", "--max-queue-delay-us", "7", "--lanes", "3")
    for model in _bound(*batches, "--max-queue-size", "11", "--queue-timeout-ms", "13").values():
        batcher = model.config.batcher
        assert (model.config.max_batch_size, batcher.max_queue_delay_microseconds) == (20, 7)
        assert batcher.preferred_batch_size == [7, 20]
        queue = batcher.default_queue_policy
        assert queue.timeout_action is TimeoutAction.REJECT and queue.allow_timeout_override
        assert (queue.default_timeout_microseconds, queue.max_queue_size) == (13_000, 11)
        ((input_, output),) = zip(model.inputs, model.outputs, strict=True)
        assert (output.name, output.shape, output.dtype) == ("EMBEDDING", (2,), np.float32)
        expected = ("INPUT_IMAGE", (1,)) if input_.dtype == np.bytes_ else ("PIXEL_VALUES", (3, 4, 4))
        assert (input_.name, input_.shape) == expected


@pytest.mark.parametrize(("max_image_bytes", "row"), [("300", 400), ("3", 4 * 3 * 4 * 4)])
def test_there_is_room_for_the_largest_batch_of_either_model(max_image_bytes: str, row: int) -> None:
    """Of base64 text, which takes a third more than the images, or of pixels."""
    settings = load_settings(["--max-batch-size", "7", "--max-image-bytes", max_image_bytes])
    parts: Any = SimpleNamespace(settings=settings, encoders=[Device(0)])
    assert _batch_bytes(parts, 4) == 7 * row + 2**28
