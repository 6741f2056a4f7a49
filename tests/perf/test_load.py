"""The own client against a server that tells what it was sent, and fails when asked to."""

import argparse
import asyncio
import base64
import contextlib
import io
import itertools
import json
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from aiohttp import web
from PIL import Image

from perf import images, peers
from perf.bench import Bench, failure, require_answers
from perf.findings import NotMeasured
from perf.load import client
from perf.load.client import Load, LoadResult
from perf.load.flood import Flood, send_part
from perf.load.perf_analyzer import PerfAnalyzer
from perf.load.protocols import Target

JPEGS = set(images.workload())
# Of the levels in one run the first has the time in it in which the load builds up; in the report it comes last.
FAKE_PERF_ANALYZER = f"""#!{sys.executable}
import sys
value = {{name: value for name, value in zip(sys.argv, sys.argv[1:])}}
first, last = (value["--concurrency-range"].split(":") * 2)[:2]
rates = {{last: 500, first: 400}}
lines = [f"{{level}},{{rate}},100000,200000" for level, rate in rates.items()]
open(value["-f"], "w").write("\\n".join(["Concurrency,Inferences/Second,p50 latency,p99 latency", *lines]))
"""


@dataclass
class FakeServer:
    """Answers as a KServe and an OpenAI server do, after a while; every `fail_every`-th request gets a 503."""

    fail_every: int = 0
    seconds: float = 0.0
    requests: int = 0
    images: set[bytes] = field(default_factory=set)
    under_way: int = 0
    most_under_way: int = 0

    @web.middleware
    async def wait(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Count the requests that are there at the same time."""
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await asyncio.sleep(self.seconds)
        self.under_way -= 1
        return await handler(request)

    async def infer(self, request: web.Request) -> web.Response:
        """KServe, raw or JSON, as the request's headers say."""
        body = await request.read()
        if "Inference-Header-Content-Length" not in request.headers:
            (tensor,) = json.loads(body)["inputs"]
            assert json.loads(body)["parameters"] == {"base64_encoded": True} and tensor["shape"] == [1, 1]
            body = base64.b64decode(tensor["data"][0], validate=True)
        return self._answer(body, {"outputs": [{"name": "EMBEDDING"}]})

    async def embeddings(self, request: web.Request) -> web.Response:
        """infinity's form of `/embeddings`."""
        body = await request.json()
        assert (body["model"], body["modality"], body["encoding_format"]) == ("m", "image", "base64")
        (uri,) = body["input"]
        head, _, text = uri.partition(",")
        assert head == "data:image/jpeg;base64"
        return self._answer(base64.b64decode(text, validate=True), {"data": [{"embedding": "AAAA"}]})

    async def nothing(self, request: web.Request) -> web.Response:
        """An answer of the right status without an embedding."""
        return web.json_response({"data": []})

    def _answer(self, image: bytes, answer: object) -> web.Response:
        self.requests += 1
        self.images.add(image)
        if self.fail_every and self.requests % self.fail_every == 0:
            return web.json_response({"error": "busy"}, status=503)
        return web.json_response(answer)


@contextlib.contextmanager
def served(fake: FakeServer) -> Iterator[str]:
    """The URL of the fake server, which runs in a thread."""
    loop = asyncio.new_event_loop()
    application = web.Application(client_max_size=2**24, middlewares=[fake.wait])
    application.router.add_post("/v2/models/embed_image/infer", fake.infer)
    application.router.add_post("/v2/models/hollow/infer", fake.nothing)
    application.router.add_post("/embeddings", fake.embeddings)
    runner = web.AppRunner(application)
    loop.run_until_complete(runner.setup())
    site = web.TCPSite(runner, "127.0.0.1", 0)
    loop.run_until_complete(site.start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(runner.cleanup())
        loop.close()


def measure(target: Target, load: Load) -> LoadResult:
    """The client's work in this process."""
    return client._merge([client._measure(target, load)])


@pytest.fixture(autouse=True)
def no_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each slot is answered once before the measurement all the same."""
    monkeypatch.setattr(client, "_WARM_UP_SECONDS", 0.0)


@pytest.mark.parametrize(
    ("protocol", "model"), [("kserve-http", "embed_image"), ("kserve-json", "embed_image"), ("openai", "m")]
)
def test_every_http_protocol_sends_the_workload_and_counts_its_answers(protocol: str, model: str) -> None:
    fake = FakeServer(seconds=0.02)
    with served(fake) as url:
        result = measure(Target("fake", protocol, url, model), Load(in_flight=3, seconds=0.3))
    assert fake.images <= JPEGS and len(fake.images) > 3
    assert result.errors == {} and fake.most_under_way == 3
    assert result.images_per_second > 0 and 20 <= result.p50_ms <= result.p99_ms < 10_000
    assert result.client_cores > 0


def test_several_processes_share_the_load_and_what_they_saw_is_added_up() -> None:
    turn = 0.2
    fake = FakeServer(seconds=turn)
    with served(fake) as url, client.OwnClient(2) as own:
        target = Target("fake", "kserve-http", url)
        own.measure(target, Load(2, 0))  # starts them both
        for in_flight in (1, 3):
            fake.most_under_way = 0
            result = own.measure(target, Load(in_flight, turn))
            assert result.errors == {} and fake.most_under_way == in_flight
            assert 1000 * turn <= result.p50_ms < 60_000
            # However slow the machine is: as many are under way as there are a second, times the seconds of each.
            assert 0.7 < result.images_per_second * result.p50_ms / 1000 / in_flight < 1.4


def test_failures_are_counted_by_message_and_no_throughput() -> None:
    with served(FakeServer(fail_every=2)) as url:
        result = measure(Target("fake", "kserve-http", url), Load(in_flight=2, seconds=0.3))
    (message,) = result.errors
    assert message == 'RequestFailed: HTTP 503: {"error": "busy"}'
    assert failure([result, result]).startswith(f"{2 * result.errors[message]} requests failed")
    with pytest.raises(NotMeasured, match="503"):
        require_answers(result)


@pytest.mark.parametrize(
    ("protocol", "model", "message"),
    [
        ("kserve-http", "hollow", 'RequestFailed: the answer holds no "outputs"'),
        ("kserve-http", "absent", "RequestFailed: HTTP 404"),
        ("kserve-grpc", "embed_image", "RequestFailed: UNAVAILABLE"),
    ],
)
def test_what_is_no_embedding_is_a_failure(protocol: str, model: str, message: str) -> None:
    with served(FakeServer()) as url:
        address = "127.0.0.1:1" if protocol == "kserve-grpc" else url
        result = measure(Target("fake", protocol, address, model), Load(in_flight=1, seconds=0.1))
    assert result.images_per_second == 0
    assert [text for text in result.errors if text.startswith(message)]


def test_a_flood_does_not_wait_for_answers_and_says_how_each_request_ended() -> None:
    fake = FakeServer(fail_every=3, seconds=0.5)
    with served(fake) as url, ThreadPoolExecutor(2) as threads:
        target, flood = Target("fake", "kserve-http", url), Flood(rate=100, seconds=0.3, begin=time.monotonic() + 0.5)
        parts = list(threads.map(lambda index: send_part(target, flood.part(index, 2)), range(2)))
    assert all(0 < len(part.requests) <= 15 for part in parts)
    requests = [each for part in parts for each in part.requests]
    assert len(requests) == fake.requests
    assert sum(each.is_turned_away for each in requests) == fake.requests // 3
    assert all(each.is_turned_away == bool(each.error) for each in requests)
    # None came back before the last was sent.
    (first, _) = parts
    assert min(each.ended for each in first.requests) > max(each.sent for each in first.requests)
    assert all(part.cpu_seconds > 0 for part in parts)


def test_other_failures_of_a_flood_are_told_apart() -> None:
    with served(FakeServer()) as url:
        flood = Flood(rate=100, seconds=0.1, begin=time.monotonic())
        requests = send_part(Target("fake", "kserve-http", url, "absent"), flood).requests
    assert requests and all(each.error.startswith("HTTP 404") and not each.is_turned_away for each in requests)


def test_slots_are_timed_from_answer_to_answer() -> None:
    loop = client._ClosedLoop.__new__(client._ClosedLoop)
    # Two slots in bursts every two seconds: a window from 0.9 to 5.1 would see six answers in 4.2 seconds.
    loop._answers = [[1.0, 3.0, 5.0], [1.0, 3.0, 5.0]]
    assert loop._images_per_second() == 2 / 2.0
    # Waits of one and three seconds are two seconds each, for two slots; one wait and none are nothing to go by.
    loop._answers = [[1.0, 2.0], [1.0, 4.0], [1.0]]
    assert loop._images_per_second() == 2 / 2.0


def test_what_perf_analyzer_counts_while_its_load_builds_up_is_left_out(tmp_path: Path) -> None:
    fake = tmp_path / "perf_analyzer"
    fake.write_text(FAKE_PERF_ANALYZER)
    fake.chmod(0o755)
    result = PerfAnalyzer(str(fake), tmp_path).measure(Target("", "kserve-grpc", ""), Load(60, 1.0))
    assert (result.images_per_second, result.p50_ms, result.p99_ms, result.errors) == (500.0, 100.0, 200.0, {})


def test_distinct_images_are_the_same_picture() -> None:
    (first, *_) = images.shipped()
    left, right = (np.asarray(Image.open(io.BytesIO(images.distinct(first, number)))) for number in (1, 2**40))
    assert np.array_equal(left, np.asarray(Image.open(io.BytesIO(first)))) and np.array_equal(left, right)
    assert len(JPEGS) == images.DISTINCT_IMAGES


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_a_share_of_images_repeats(share: float) -> None:
    stream = images.repeating(share, seed=1)
    known = set(itertools.islice(stream, images.DISTINCT_IMAGES))
    later = list(itertools.islice(stream, 1000))
    assert sum(image in known for image in later) / 1000 == pytest.approx(share, abs=0.05)
    new = [image for image in later if image not in known]
    assert len(set(new)) == len(new)
    assert not set(new) & set(itertools.islice(images.repeating(share, seed=2), 1000))


def test_targets_are_read_from_the_command_line() -> None:
    assert peers.parse_target("a=openai,http://h:1/v1,m") == Target("a", "openai", "http://h:1/v1", "m")
    assert peers.parse_target("a=kserve-grpc,h:1") == Target("a", "kserve-grpc", "h:1", "embed_image")
    for wrong in ("a", "a=openai", "a=soap,http://h:1", "=openai,http://h:1"):
        with pytest.raises(argparse.ArgumentTypeError):
            peers.parse_target(wrong)


def test_peers_stand_side_by_side_and_one_that_fails_is_left_out_with_a_note() -> None:
    with served(FakeServer()) as good, served(FakeServer(fail_every=3)) as bad:
        own = SimpleNamespace(measure=measure)
        bench = Bench(5, 0.05, torch.device("cpu"), own, None, True)  # type: ignore[arg-type]
        targets = [Target(name, "kserve-http", url) for name, url in (("a", good), ("b", good), ("bad", bad))]
        findings = peers.measure_peers(bench, targets, in_flight=2)
    (figure,), (table,), (note,) = findings.figures, findings.tables, findings.notes
    assert figure.name == "a / b" and len(figure.samples) == 5
    assert list(table.points) == ["a", "b"]
    assert note.startswith("bad is not measured: ") and "503" in note
