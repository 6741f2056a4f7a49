"""What tests of the client share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.client.fake_service import FakeService, fake_service
from tests.client.running import Client


@pytest.fixture
def fake() -> Iterator[FakeService]:
    with fake_service() as service:
        yield service


@pytest.fixture
def client(fake: FakeService, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Client:
    return Client(fake, tmp_path, capsys)
