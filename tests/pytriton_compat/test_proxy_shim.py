"""What runs inside Triton's stub: faults of one request, responses that cannot be converted, patience at the start.

The shim is installed as the server does it, beside a stand-in for PyTriton's proxy.
"""

import importlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import service.pytriton_compat
from service.pytriton_compat.batch_wire import BatchSerializer
from service.pytriton_compat.fault_wire import fault_response

HERE = Path(service.pytriton_compat.__file__).parent
PROXY = """
import logging
from types import SimpleNamespace
LOGGER = logging.getLogger("proxy")
ANSWERS, CALLS = [], []
class Request(SimpleNamespace): pass
class Response(SimpleNamespace): pass
class TensorStoreSerializerDeserializer: pass
class TritonPythonModel:
    serializer = property(lambda self: TensorStoreSerializerDeserializer())
    def execute(self, triton_requests):
        if "no lane" in triton_requests:
            raise RuntimeError("a traceback with /secret/path")
        return [_wrap_response(*request) for request in triton_requests]
    def initialize(self, path):
        return get_config_from_handshake_server(path)
def _wrap_response(response, requested_outputs, model_outputs):
    if "unconvertible" in response.data:
        raise TypeError("cannot cast /secret/path")
    return "wrapped", response, requested_outputs, model_outputs
def get_config_from_handshake_server(socket_path, timeout_s=1.0):
    CALLS.append(socket_path)
    answer = ANSWERS.pop(0) if len(ANSWERS) > 1 else ANSWERS[0]
    if isinstance(answer, Exception):
        raise answer
    return answer
"""


class Clock:
    """Stands for the module `time`: a sleep takes no time but counts."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def _backend() -> ModuleType:
    """Triton's own module, as far as it is used."""
    module: Any = ModuleType("triton_python_backend_utils")

    class TritonError:
        INTERNAL, INVALID_ARG = 1, 3

        def __init__(self, message: str, code: int) -> None:
            self.told = (code, message)

    module.TritonError = TritonError
    module.InferenceResponse = lambda outputs, error: SimpleNamespace(outputs=outputs, error=error)
    assert isinstance(module, ModuleType)
    return module


@pytest.fixture
def shim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The shim as `model.py` in a package of its own, its clock replaced."""
    folder = tmp_path / "folder_of_model"
    folder.mkdir()
    shutil.copy(HERE / "proxy_shim.py", folder / "model.py")
    for wire in ("batch_wire.py", "fault_wire.py"):
        shutil.copy(HERE / wire, folder)
    (folder / "proxy_model.py").write_text(PROXY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", _backend())
    for name in ("", ".model", ".proxy_model", ".batch_wire", ".fault_wire"):
        monkeypatch.delitem(sys.modules, f"folder_of_model{name}", raising=False)
    module = importlib.import_module("folder_of_model.model")
    monkeypatch.setattr(module, "time", Clock())
    return module


def _execute(shim: Any, data: dict[str, Any]) -> Any:
    """Through the model that Triton loads, so that the replacement is what it calls."""
    request = (SimpleNamespace(data=data), ["EMBEDDING"], {"EMBEDDING": "FP32"})
    return shim.TritonPythonModel().execute([request])[0]


def test_a_failure_of_the_proxy_keeps_its_traceback_to_itself(shim: Any) -> None:
    answers = shim.TritonPythonModel().execute(["no lane", "either"])
    assert [answer.error.told for answer in answers] == [(1, "internal_error: the request could not be answered")] * 2


def test_a_response_goes_the_proxys_own_way(shim: Any) -> None:
    data = {"EMBEDDING": np.ones((1, 3), np.float32)}
    kind, response, *others = _execute(shim, data)
    assert kind == "wrapped" and response.data is data
    assert others == [["EMBEDDING"], {"EMBEDDING": "FP32"}]


def test_requests_and_responses_travel_as_our_messages_in_the_proxys_own_classes(shim: Any) -> None:
    stub, service = shim.TritonPythonModel().serializer, BatchSerializer(SimpleNamespace, SimpleNamespace)
    image = np.array([[b"image"]], np.object_)
    sent = shim.proxy_model.Request(data={"INPUT_IMAGE": image}, parameters={}, requested_output_names=None)
    (request,) = service.deserialize_requests(stub.serialize_requests([sent]))
    assert request.data["INPUT_IMAGE"].tolist() == [[b"image"]]
    (response,) = stub.deserialize_responses(service.serialize_responses([{"EMBEDDING": np.ones((1, 3))}]))
    assert type(response) is shim.proxy_model.Response and response.data["EMBEDDING"].tolist() == [[1.0] * 3]


@pytest.mark.parametrize(("status", "code"), [("INVALID_ARG", 3), ("INTERNAL", 1)])
def test_a_fault_fails_its_request(shim: Any, status: str, code: int) -> None:
    answer = _execute(shim, dict(fault_response(status, "corrupt_image: käse")))
    assert answer.outputs == [] and answer.error.told == (code, "corrupt_image: käse")


@pytest.mark.parametrize(
    "data",
    [
        {"unconvertible": np.ones(1)},
        dict(fault_response("NO_SUCH_STATUS", "x")),
        {"__fault__": np.array([b"INTERNAL"], np.object_)},
        {"__fault__": np.array([b"INTERNAL", b"\xff"], np.object_)},
        None,
    ],
    ids=["original", "status", "half a fault", "no text", "no response"],
)
def test_what_cannot_be_converted_is_the_services_fault(shim: Any, data: Any, caplog: pytest.LogCaptureFixture) -> None:
    answer = _execute(shim, data)
    assert answer.outputs == []
    assert answer.error.told == (1, "internal_error: the response could not be converted")
    assert "could not be converted" in caplog.text


@pytest.mark.parametrize("error", [ConnectionRefusedError, FileNotFoundError, TimeoutError, ValueError])
def test_the_handshake_is_tried_until_it_answers(shim: Any, error: Callable[[], Exception]) -> None:
    shim.proxy_model.ANSWERS.extend([*(error() for _ in range(50)), "the configuration"])
    assert shim.TritonPythonModel().initialize("socket") == "the configuration"
    assert shim.proxy_model.CALLS == ["socket"] * 51
    assert 0 < shim.time.now < 300


def test_the_handshake_is_given_up_after_five_minutes(shim: Any) -> None:
    shim.proxy_model.ANSWERS.append(ConnectionRefusedError("nobody"))
    with pytest.raises(ConnectionRefusedError, match="nobody"):
        shim.TritonPythonModel().initialize("socket")
    assert 300 <= shim.time.now < 301


def test_another_error_of_the_handshake_is_not_retried(shim: Any) -> None:
    shim.proxy_model.ANSWERS.append(KeyError("a bug"))
    with pytest.raises(KeyError):
        shim.TritonPythonModel().initialize("socket")
    assert len(shim.proxy_model.CALLS) == 1
