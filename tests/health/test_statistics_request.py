"""The request is one that its model refuses, and what becomes of it is no matter."""

import http.client
import json
from typing import cast

import pytest

from service.health.statistics_request import StatisticsRequest
from service.process.local_client import LocalClient

SIDE = 4


class FailingClient:
    """Keeps what was sent, and fails."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.sent: list[tuple[str, bytes, dict[str, str]]] = []

    def post(self, path: str, body: bytes, seconds: float, headers: dict[str, str]) -> tuple[int, bytes]:
        self.sent.append((path, body, headers))
        raise self.error


@pytest.mark.parametrize("error", [TimeoutError(), ConnectionRefusedError(), http.client.BadStatusLine("")], ids=repr)
def test_it_asks_for_a_model_that_nobody_can_know_and_no_failure_of_it_is_one_of_the_service(error: Exception) -> None:
    client = FailingClient(error)
    requests = [StatisticsRequest(cast(LocalClient, client), "drawings", SIDE) for _ in range(2)]
    for request in requests:
        request.send()
    for request, (path, body, headers) in zip(requests, client.sent, strict=True):
        length = int(headers["Inference-Header-Content-Length"])
        header = json.loads(body[:length])
        assert path == "/v2/models/drawings/infer" and header["parameters"] == {"embed_model": request.mark}
        assert header["inputs"][0]["shape"] == [1, 3, SIDE, SIDE] and len(body) - length == 4 * 3 * SIDE**2
    assert len({request.mark for request in requests}) == 2
