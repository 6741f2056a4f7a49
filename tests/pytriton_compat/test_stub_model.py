"""What runs inside Triton's stub, against a real lane: answers, faults of one request, and failures of either side.

It is installed as the server does it, beside a stand-in for Triton's own module.
"""

import importlib
import json
import logging
import shutil
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

import service.pytriton_compat
from service.pytriton_compat.lane import Lane, Request, Response
from service.pytriton_compat.pulse import Pulse

HERE = Path(service.pytriton_compat.__file__).parent
INTERNAL = (1, "internal_error: the request could not be answered")
ARGUMENTS = {"model_config": json.dumps({"input": [{"name": "IMAGE"}]}), "model_instance_name": "embed_image_0_0"}
JOIN_SECONDS = 60


def _backend() -> ModuleType:
    """Triton's own module, as far as it is used."""
    module: Any = ModuleType("triton_python_backend_utils")

    class TritonError:
        INTERNAL, INVALID_ARG = 1, 3

        def __init__(self, message: str, code: int) -> None:
            self.told = (code, message)

    module.TritonError = TritonError
    module.InferenceResponse = lambda outputs, error=None: SimpleNamespace(outputs=outputs, error=error)
    module.Tensor = lambda name, array: (name, array.tolist())
    module.get_input_tensor_by_name = lambda request, name: request.inputs.get(name)
    module.Logger = SimpleNamespace(log_error=logging.getLogger("stub").error)
    assert isinstance(module, ModuleType)
    return module


def _request(image: bytes, request_id: str = "", **parameters: object) -> Any:
    def as_numpy() -> Any:
        if image == b"unreadable":
            raise ValueError("lengths that lie")
        return np.array([[image]], np.object_)

    inputs = {} if image == b"none" else {"IMAGE": SimpleNamespace(as_numpy=as_numpy)}
    return SimpleNamespace(
        inputs=inputs,
        parameters=lambda: json.dumps(parameters),
        request_id=lambda: request_id,
        requested_output_names=lambda: ["EMBEDDING"],
    )


def _infer(requests: Sequence[Request]) -> list[Response]:
    """The length of the image and its parameter as an embedding; some images are faults of several kinds."""
    return [_answer(request) for request in requests]


def _answer(request: Request) -> Response:
    if not request.data:
        return Response({}, ("INVALID_ARG", "invalid_tensor: käse 猫 \0\n"))
    image = request.data["IMAGE"][0, 0]
    if image == b"unknown status":
        return Response({}, ("NO_SUCH_STATUS", "x"))
    if image == b"who":
        return Response({}, ("INVALID_ARG", request.id))
    if image == b"raise":
        raise RuntimeError("a bug in /secret/path")
    number = np.array([[len(image), request.parameters.get("n", 0)]], np.float32)
    return Response({"EMBEDDING": number, "NOT_ASKED_FOR": number})


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Lane]]:
    """The stub as `model.py` in a package of its own, connected to a lane."""
    with tempfile.TemporaryDirectory() as path:  # pytest's own lie too deep for a socket
        folder = Path(path) / "folder_of_model"
        folder.mkdir()
        shutil.copy(HERE / "stub_model.py", folder / "model.py")
        for wire in ("batch_wire.py", "pulse.py"):
            shutil.copy(HERE / wire, folder)
        monkeypatch.syspath_prepend(path)
        monkeypatch.setitem(sys.modules, "triton_python_backend_utils", _backend())
        for name in ("", ".model", ".batch_wire", ".pulse"):
            monkeypatch.delitem(sys.modules, f"folder_of_model{name}", raising=False)
        monkeypatch.setattr(service.pytriton_compat.pulse, "_BEAT_SECONDS", 0.05)
        lane, pulse = Lane("model", folder / "lane-0.sock", _infer), Pulse(folder / "pulse-0.sock")
        lane.start()
        pulse.start()
        module = importlib.import_module("folder_of_model.model")
        # The real one would end the tests' own parent.
        monkeypatch.setattr(module, "_end_with_the_service", lambda connection, *_: connection.close())
        monkeypatch.setattr(module, "_TRIM_SECONDS", 0.1)
        model = module.TritonPythonModel()
        model.initialize(ARGUMENTS)
        yield model, lane
        model.finalize()
        for thread in (lane, pulse):
            thread.join(JOIN_SECONDS)
            assert not thread.is_alive()


def _told(responses: Sequence[Any]) -> list[Any]:
    return [response.error.told if response.error else dict(response.outputs) for response in responses]


def test_each_request_gets_its_own_answer_or_fault(stub: tuple[Any, Lane]) -> None:
    model, lane = stub
    batch = [
        _request(b"123", n=7),
        _request(b"none"),
        _request(b"unreadable"),
        _request(b"unknown status"),
        _request(b""),
        _request(b"who", "käse\n7"),
        _request(b"who", "é" * 2001),
        _request(b"who"),
    ]
    for _ in range(3):
        assert _told(model.execute(batch)) == [
            {"EMBEDDING": [[3.0, 7.0]]},
            (3, "invalid_tensor: käse 猫 \0\n"),
            INTERNAL,
            INTERNAL,
            {"EMBEDDING": [[0.0, 0.0]]},
            (3, "käse\n7"),
            (3, "é" * 2000),
            (3, ""),
        ]
    assert _told(model.execute([_request(b"unreadable")])) == [INTERNAL]
    assert lane.is_alive()


@pytest.mark.usefixtures("stub")
def test_what_batches_have_left_in_the_heap_goes_back() -> None:
    pieces = [bytearray(100_000) for _ in range(2_000)]
    used = pieces.pop()
    full = psutil.Process().memory_info().rss
    pieces.clear()
    deadline = time.monotonic() + JOIN_SECONDS
    while psutil.Process().memory_info().rss > full - 10**8 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert psutil.Process().memory_info().rss < full - 10**8
    assert not any(used)


@pytest.mark.parametrize("batch", [[b"raise"], [b"123", b"raise"]], ids=str)
def test_a_lane_that_fails_ends_and_its_requests_get_no_details(
    stub: tuple[Any, Lane], batch: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    model, lane = stub
    requests = [_request(image) for image in batch]
    assert _told(model.execute(requests)) == [INTERNAL] * len(batch)
    lane.join(JOIN_SECONDS)
    assert not lane.is_alive()
    assert "a bug in /secret/path" in caplog.text
    for _ in range(3):
        assert _told(model.execute([_request(b"123")])) == [INTERNAL]
    told = [record for record in caplog.records if record.name == "stub"]
    assert len(told) <= 1, "a log that nobody reads fills, and holds up the end"


@pytest.mark.parametrize("failure", [OSError("gone"), MemoryError()], ids=repr)
@pytest.mark.parametrize("step", ["send_batch", "receive_batch"])
def test_a_lane_that_cannot_be_asked_is_let_go_and_its_requests_get_no_details(
    stub: tuple[Any, Lane], monkeypatch: pytest.MonkeyPatch, step: str, failure: Exception
) -> None:
    """What it may still answer is not for the next batch."""

    def fail(*_: object) -> None:
        raise failure

    model, lane = stub
    with monkeypatch.context() as failing:
        failing.setattr(sys.modules[type(model).__module__], step, fail)
        assert _told(model.execute([_request(b"1")])) == [INTERNAL]
    assert _told(model.execute([_request(b"1")])) == [INTERNAL]
    lane.join(JOIN_SECONDS)
    assert not lane.is_alive()


def test_a_lane_keeps_nothing_of_a_batch_while_it_waits_for_the_next(stub: tuple[Any, Lane]) -> None:
    """Batches may be large, and lanes idle for long. What it has in the works is known meanwhile."""
    model, lane = stub
    images, works = list[weakref.ref[Any]](), list[tuple[int, int]]()

    def infer(requests: Sequence[Request]) -> list[Response]:
        works.append((lane.batches, lane.in_the_works))
        images.extend(weakref.ref(request.data["IMAGE"]) for request in requests)
        return _infer(requests)

    lane._infer = infer
    assert _told(model.execute([_request(b"1"), _request(b"1")])) == [{"EMBEDDING": [[1.0, 0.0]]}] * 2
    deadline = time.monotonic() + JOIN_SECONDS
    while any(image() is not None for image in images):
        assert time.monotonic() < deadline
    assert works == [(1, 2)] and (lane.batches, lane.in_the_works) == (1, 0)


@pytest.mark.parametrize(
    ("leave", "was_let_go"), [(lambda model: model.finalize(), True), (lambda model: model._lane.close(), False)]
)
def test_a_lane_ends_when_its_stub_leaves_and_knows_whether_it_was_let_go(
    stub: tuple[Any, Lane], leave: Callable[[Any], None], was_let_go: bool
) -> None:
    """A stub that is killed may have answers that nobody got."""
    model, lane = stub
    assert _told(model.execute([_request(b"1")])) == [{"EMBEDDING": [[1.0, 0.0]]}]
    leave(model)
    lane.join(JOIN_SECONDS)
    assert not lane.is_alive() and lane.was_let_go == was_let_go
