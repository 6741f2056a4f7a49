"""What is sent again, what fails its image and what the run, and that only embeddings of one kind are kept."""

import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from service.client import command, job, over_http
from service.client.results import Results
from service.client.retry import Patience
from service.client.rows import Row
from service.client.transport import Embedding, Served, TryAgain
from tests.client.fake_service import DIMENSION, FakeService
from tests.client.running import Client, expected, when
from tests.integration.service_process import wait_for


def test_what_may_succeed_later_is_sent_again_and_nothing_else(client: Client, fake: FakeService) -> None:
    again = ["503 503 200", "404 200", "500 200", "breaks 200", "400-of-a-neighbour 200"]
    again += [f"{status} 200" for status in (408, 429, 502, 504, 520)]
    images = client.images("200", *again)
    assert client.embed(images) == 0
    assert client.embeddings() == expected(11)
    assert sorted(fake.asked.values()) == [1, *[2] * 9, 3]
    assert not client.parts.exists()


def test_parts_are_written_one_after_the_other(
    client: Client, fake: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or two would have the same number, and one of them would be lost."""
    images, write, is_free = client.images(*["200"] * 20), Results.write, threading.Lock()

    def write_late(results: Results, rows: Sequence[Row]) -> None:
        assert is_free.acquire(blocking=False)
        wait_for(lambda: fake.answered == 20)
        write(results, rows)
        is_free.release()

    monkeypatch.setattr(job, "PART_ROWS", 1)
    monkeypatch.setattr(Results, "write", write_late)
    assert client.embed(images) == 0
    assert client.embeddings() == expected(20)


def test_an_embedding_of_another_length_ends_the_run(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a part it would shift all that come after it, and twice as many numbers would be two rows."""

    async def embed(*_: object) -> Embedding:
        return np.zeros(2 * DIMENSION, np.float32)

    monkeypatch.setattr(over_http.HttpTransport, "embed", embed)
    assert client.embed(client.images("200")) == 2
    assert client.said().endswith("error: an embedding has 8 dimensions instead of 4\n")
    assert not client.parts.exists()


def _refusing_once(served: Callable[..., Awaitable[Served]]) -> Callable[..., Awaitable[Served]]:
    """`served`, which after its first answer gives none, once."""
    asked: list[object] = []

    async def refuse_once(transport: object) -> Served:
        asked.append(transport)
        if len(asked) == 2:
            raise TryAgain("a replica is stopping")
        return await served(transport)

    return refuse_once


def test_one_unanswered_question_ends_no_run(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(over_http.HttpTransport, "served", _refusing_once(over_http.HttpTransport.served))
    images = client.images("503", "200")
    assert client.embed(images, "--timeout", 0.2) == 1
    assert client.rows()["0.JPG"][1] == "no_answer: HTTP 503: Exceeds maximum queue size"


@pytest.mark.parametrize(("part_seconds", "unanswered"), [(0.05, 0), (30.0, 1)])
def test_embeddings_of_another_service_are_not_mixed_in(
    client: Client,
    fake: FakeService,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    part_seconds: float,
    unanswered: int,
) -> None:
    """Nor where it leaves a question unanswered, as one that has only just come."""
    images = client.images("200", "200")
    assert client.embed(images) == 0
    before = client.out.read_bytes()
    fake.fingerprint = "another"
    assert client.embed(images) == 2
    assert "of fingerprint 0123456789abcdef" in client.said() and client.out.read_bytes() == before
    monkeypatch.setattr(job, "PART_SECONDS", part_seconds)
    (images / "late.jpg").write_text("waits #3")

    def replace() -> None:
        fake.fingerprint, fake.unanswered = "new", unanswered
        fake.gate.set()

    when(lambda: fake.asked["waits #3"] > 0, replace)
    assert client.embed(images, "--out", tmp_path / "other.parquet") == 2
    assert "now it is of fingerprint new" in client.said() and not (tmp_path / "other.parquet").exists()


def test_embeddings_that_the_service_normalizes_unasked_count_as_normalized(client: Client, fake: FakeService) -> None:
    images = client.images("200")
    fake.defaults = {"default_normalize": "true", "default_base64_encoded": "false"}
    assert client.embed(images) == 0
    assert pq.read_schema(client.out).metadata[b"normalize"] == b"True"
    fake.defaults = {}  # as a service tells that is older than they are
    assert client.embed(images) == 2
    assert "normalize True; now it would be" in client.said()
    assert client.embed(images, "--normalize") == 0


def test_a_service_that_expects_base64_is_sent_nothing(client: Client, fake: FakeService) -> None:
    fake.defaults = {"default_base64_encoded": "true"}
    assert client.embed(client.images("200")) == 2
    said = client.said()
    assert "--default-base64-encoded true" in said and said.count("\n") == 1 and not fake.asked


def test_a_service_that_is_gone_ends_the_run_and_blames_no_image(
    client: Client, fake: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = client.images("200", "waits")
    monkeypatch.setattr(job, "_SIGN_OF_LIFE", Patience(total=0))
    when(lambda: fake.answered > 0 and len(fake.asked) == 2, fake.go)
    assert client.embed(images, "--timeout", 1) == 3
    assert client.embeddings(client.parts) == expected(1)
    monkeypatch.setattr(command, "_FIRST_ANSWER", Patience(total=0))
    assert client.embed(images) == 3


def test_a_service_that_is_there_but_never_answers_an_image_fails_that_image(client: Client) -> None:
    images = client.images("200", "503", "waits")
    assert client.embed(images, "--timeout", 1, "--request-timeout", 0.2) == 1
    assert client.errors() == {
        "below/1.JPG": "no_answer: HTTP 503: Exceeds maximum queue size",
        "2.JPG": "no_answer: no answer in time",
    }
