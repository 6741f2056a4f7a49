"""The canary goes the way of a client's image, and knows its own embedding from any other."""

import base64
import json
from typing import Any, cast

import numpy as np
import pytest

from service.errors import Fault, InternalFault, ServiceFailure
from service.health.canary import Answer, Canary, Embed, Embedding, canary_image, same_direction
from service.process.local_client import LocalClient

KNOWN = np.array([3, -1, 2], np.float32)


class FakeClient:
    """Answers each request with the same, and keeps what was sent."""

    def __init__(self, status: int, body: bytes) -> None:
        self.answer = status, body
        self.sent: list[Any] = []

    def post(self, path: str, body: bytes, seconds: float) -> tuple[int, bytes]:
        assert path == "/v2/models/embed_image/infer" and seconds < 10
        self.sent.append(json.loads(body))
        return self.answer


def _device(outcome: Embedding | Fault) -> Embed:
    return lambda: outcome


RIGHT, WRONG = _device(KNOWN), _device(np.array([3, 1, 2], np.float32))
FAILING = _device(InternalFault("it fails"))


def _answer(*values: float) -> bytes:
    return json.dumps({"outputs": [{"name": "EMBEDDING", "data": values}]}).encode()


def _send(status: int, body: bytes) -> Answer:
    return Canary(KNOWN, cast(LocalClient, FakeClient(status, body)), [RIGHT]).send()


def test_it_is_the_image_itself_whatever_the_services_defaults_are() -> None:
    client = FakeClient(200, _answer(3, -1, 2))
    assert Canary(KNOWN, cast(LocalClient, client), []).send() == "right"
    assert base64.b64decode(client.sent[0]["inputs"][0]["data"][0]) == canary_image()
    assert client.sent[0]["parameters"] == {"base64_encoded": True, "normalize": False}


@pytest.mark.parametrize(
    "body",
    [
        _answer(3, 1, 2),
        _answer(float("nan"), -1, 2),
        _answer(0, 0, 0),
        b"",
        b"{}",
        b"[]",
        b'{"outputs": [{"data": "x"}]}',
    ],
)
def test_any_other_embedding_is_a_failure(body: bytes) -> None:
    with pytest.raises(ServiceFailure, match="canary"):
        _send(200, body)


def test_a_device_that_computes_wrong_numbers_is_found_although_no_request_gets_there() -> None:
    client = cast(LocalClient, FakeClient(200, _answer(3, -1, 2)))
    assert Canary(KNOWN, client, [RIGHT, RIGHT]).send() == "right"
    for devices in ([RIGHT, FAILING], [FAILING, RIGHT]):
        assert Canary(KNOWN, client, devices).send() == "refused"
    for devices in ([RIGHT, WRONG], [WRONG, RIGHT], [FAILING, WRONG]):
        with pytest.raises(ServiceFailure, match="canary"):
            Canary(KNOWN, client, devices).send()
    assert Canary(KNOWN, client, [WRONG]).send() == "right", "of one device, its answer tells"


def test_where_no_request_gets_through_the_device_is_asked() -> None:
    class Lost(FakeClient):
        def post(self, path: str, body: bytes, seconds: float) -> tuple[int, bytes]:
            raise TimeoutError

    crowded, lost = FakeClient(503, b""), Lost(0, b"")
    for client in (cast(LocalClient, crowded), cast(LocalClient, lost)):
        assert Canary(KNOWN, client, [FAILING]).send() == "refused"
        with pytest.raises(ServiceFailure, match="canary"):
            Canary(KNOWN, client, [WRONG]).send()
    with pytest.raises(TimeoutError):
        Canary(KNOWN, cast(LocalClient, lost), [RIGHT]).send()


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (500, b'{"error": "internal_error: ..."}', "refused"),
        (400, b'{"error": "corrupt_image: ..."}', "refused"),
        (404, b'{"error": "no model"}', "refused"),
        (503, b'{"error": "Exceeds maximum queue size"}', "crowded out"),
        (400, b'{"error": "incomplete string data for inference input \'INPUT_IMAGE\', expecting"}', "crowded out"),
        (500, b'{"error": "Failed to increase the shared memory pool size for key ..."}', "crowded out"),
    ],
)
def test_a_refusal_for_the_sake_of_others_is_none_of_the_canary(status: int, body: bytes, kind: Answer) -> None:
    assert _send(status, body) == kind


def test_rounding_makes_no_other_direction() -> None:
    assert same_direction(KNOWN * 1.001, KNOWN) and not same_direction(-KNOWN, KNOWN)
    a_little_aside = KNOWN + np.array([0.4, 0, 0], np.float32)  # a cosine of 0.998
    assert not same_direction(a_little_aside, KNOWN)
