"""One scrape reads Triton's measurements and ours; what cannot be answered says so and breaks nothing."""

import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.client import RemoteDisconnected
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.error import HTTPError, URLError

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service import metrics_endpoint as room
from service.metrics import Metrics
from service.metrics_endpoint import metrics_endpoint
from service.process.local_client import LocalClient
from tests.integration.service_process import wait_for
from tests.ports import unused_port
from tests.serving import Quiet, serving

TRITONS = b"""# HELP nv_inference_count Number of inferences performed
# TYPE nv_inference_count counter
nv_inference_count{model="embed_image",version="1"} 23
"""


class _Triton(Quiet, BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        problem = self.headers.get("Problem")
        self.send_response(503 if problem == "failing" else 200)
        self.send_header("Content-Length", str(len(TRITONS)))
        self.end_headers()
        self.wfile.write(TRITONS[:20] if problem == "dying" else TRITONS)


@pytest.fixture(scope="module")
def triton_port() -> Iterator[int]:
    """Where a stand-in for Triton's metrics listens."""
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), _Triton)) as server:
        yield server.server_port


@pytest.fixture
def triton(triton_port: int) -> LocalClient:
    """What asks the stand-in."""
    return LocalClient("127.0.0.1", triton_port)


@contextmanager
def _served(metrics: Metrics, triton: LocalClient) -> Iterator[str]:
    port = unused_port()
    with metrics_endpoint(metrics, "127.0.0.1", port, triton):
        yield f"http://127.0.0.1:{port}"


def _get(url: str | urllib.request.Request) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            return response.status, response.read()
    except HTTPError as error:
        with error:
            return error.code, error.read()


def _samples(text: bytes) -> dict[tuple[str, ...], float]:
    """Values by name and label values."""
    families = text_string_to_metric_families(text.decode())
    return {(sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples}


def test_a_scrape_is_tritons_text_followed_by_ours(triton: LocalClient) -> None:
    metrics = Metrics()
    with metrics.stage("decode"), metrics.busy_lanes.track_inprogress(), _served(metrics, triton) as url:
        metrics.batch_images.observe(3)
        metrics.repeats.inc(2)
        for code in ("ok", "ok", "corrupt_image"):
            metrics.answered(code)
        with pytest.raises(RuntimeError), metrics.stage("encode"):
            raise RuntimeError
        status, text = _get(f"{url}/metrics")
    assert status == 200 and text.startswith(TRITONS)
    expected = {
        ("nv_inference_count_total", "embed_image", "1"): 23,  # as the parser calls every counter
        ("embed_images_total", "ok"): 2,
        ("embed_images_total", "corrupt_image"): 1,
        ("embed_repeats_total",): 2,
        ("embed_busy_lanes",): 1,
        ("embed_batch_images_count",): 1,
        ("embed_batch_images_sum",): 3,
        ("embed_batch_images_bucket", "2.0"): 0,
        ("embed_batch_images_bucket", "4.0"): 1,
        ("embed_batch_images_bucket", "4096.0"): 1,
        ("embed_stage_seconds_count", "decode"): 0,  # not over yet
        ("embed_stage_seconds_count", "resize"): 0,
        ("embed_stage_seconds_count", "encode"): 1,
        ("embed_encoder_failures_total",): 0,
        ("embed_triton_restarts_total",): 0,
        ("embed_images_total", "internal_error"): 0,  # or the first one would be invisible to rate()
    }
    found = _samples(text)
    assert {key: found.get(key) for key in expected} == expected


def test_nobody_is_asked_for_the_hosts_name(triton: LocalClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no name server answers, the start would wait for it."""
    monkeypatch.setattr(socket, "getfqdn", lambda *_: pytest.fail("it was asked for"))
    with _served(Metrics(), triton) as url:
        assert _get(f"{url}/metrics")[0] == 200


def test_with_a_token_a_scrape_needs_it(triton: LocalClient) -> None:
    port = unused_port()
    with metrics_endpoint(Metrics(), "127.0.0.1", port, triton, "secret"):
        request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics")
        for value, status in ((None, 401), ("Bearer wrong", 401), ("Bearer secret", 200)):
            if value:
                request.add_header("Authorization", value)
            assert _get(request)[0] == status


def test_a_scrape_that_fails_is_one_event_in_the_log(
    triton: LocalClient, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    metrics = Metrics()
    metrics.encoder_memory.labels("cuda:0").set_function(lambda: 1 / 0)  # whatever fails within a scrape
    with _served(metrics, triton) as url, pytest.raises(RemoteDisconnected):
        _get(f"{url}/metrics")
    assert [record.message for record in caplog.records] == ["a scrape could not be answered"]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("path", ["/", "/metrics/", "/metricsx", "/v2/health/ready", "/../metrics"])
def test_there_is_nothing_at_other_paths(triton: LocalClient, path: str) -> None:
    with _served(Metrics(), triton) as url:
        assert _get(url + path)[0] == 404
        assert _get(f"{url}/metrics")[0] == 200


def test_a_scrapers_parameters_are_passed_over(triton: LocalClient) -> None:
    with _served(Metrics(), triton) as url:
        assert _get(f"{url}/metrics?format=text")[0] == 200


def test_a_scrape_waits_for_the_port_that_triton_opens_after_it_is_ready(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    late_port = unused_port()
    late = ThreadingHTTPServer(("127.0.0.1", late_port), _Triton, bind_and_activate=False)

    def open_late(_: float) -> None:
        late.server_bind()
        late.server_activate()
        threading.Thread(target=late.serve_forever, args=(0.01,), daemon=True).start()

    patched = SimpleNamespace(monotonic=time.monotonic, sleep=open_late)  # which only follows a refused connection
    monkeypatch.setattr("service.metrics_endpoint.time", patched)
    with _served(Metrics(), LocalClient("127.0.0.1", late_port)) as url:
        assert _get(f"{url}/metrics")[0] == 200
    late.shutdown()
    late.server_close()


@pytest.mark.parametrize("problem", ["nobody listens", "failing", "dying"])
def test_without_tritons_measurements_a_scrape_says_so(
    triton_port: int, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.metrics_endpoint._TRITON_TIMEOUT_SECONDS", 0.5)
    port = unused_port() if problem == "nobody listens" else triton_port
    with _served(Metrics(), LocalClient("127.0.0.1", port, {"Problem": problem})) as url:
        assert [_get(f"{url}/metrics")[0] for _ in range(2)] == [503, 503]


def test_a_proxy_of_the_environment_does_not_stand_before_triton(
    triton: LocalClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _served(Metrics(), triton) as url:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        monkeypatch.setattr(urllib.request, "_opener", None)  # it would remember the environment of its first use
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{unused_port()}")
        with opener.open(f"{url}/metrics", timeout=30) as response:
            assert response.status == 200


@pytest.mark.parametrize(("most", "seconds", "last"), [(2, 3600.0, 2), (16, 0.1, 0)], ids=["too many", "too slow"])
def test_connections_that_say_nothing_are_few_and_soon_gone(
    triton: LocalClient, monkeypatch: pytest.MonkeyPatch, most: int, seconds: float, last: int
) -> None:
    """Each would hold a thread and a descriptor of the service."""
    monkeypatch.setattr(room, "_MOST_SCRAPES", most)
    monkeypatch.setattr(room, "_SCRAPER_TIMEOUT_SECONDS", seconds)
    with _served(Metrics(), triton) as url, ExitStack() as silent:
        address = ("127.0.0.1", int(url.rsplit(":", 1)[1]))
        connections = [silent.enter_context(socket.create_connection(address, timeout=30)) for _ in range(3)]
        assert connections[last].recv(1) == b""


def test_who_sends_a_byte_now_and_then_does_not_keep_a_place(
    triton: LocalClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_SCRAPE_SECONDS", 0.3)
    with _served(Metrics(), triton) as url:
        with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=0.05) as slow:
            slow.sendall(b"GET /metrics HTTP/1.1\r\nX: ")
            for _ in range(200):
                slow.sendall(b"x")
                with suppress(TimeoutError):
                    assert slow.recv(1) == b""
                    break
            else:
                pytest.fail("it is still there")
        assert _get(f"{url}/metrics")[0] == 200


@pytest.mark.parametrize("kind", [threading.Thread, threading.Timer])
def test_a_scrape_without_a_thread_for_it_or_for_its_timer_keeps_no_place(
    triton: LocalClient, monkeypatch: pytest.MonkeyPatch, kind: type[threading.Thread]
) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(room, "_MOST_SCRAPES", 1)
    with _served(Metrics(), triton) as url:
        with monkeypatch.context() as busy:
            busy.setattr(kind, "start", fail)  # first, or the scrape could have its thread already
            with socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=30) as scraper:
                assert scraper.recv(1) == b""
        wait_for(lambda: _is_answered(f"{url}/metrics"), 30)  # its place is free a moment after it is gone


def _is_answered(url: str) -> bool:
    with suppress(RemoteDisconnected):
        return _get(url)[0] == 200
    return False


def test_the_port_is_free_again_at_the_end_whatever_ended_it(triton: LocalClient) -> None:
    with pytest.raises(KeyboardInterrupt), _served(Metrics(), triton) as url:
        assert _get(f"{url}/metrics")[0] == 200
        raise KeyboardInterrupt
    with pytest.raises(URLError, match="refused"):
        urllib.request.urlopen(f"{url}/metrics", timeout=30)
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", int(url.rsplit(":", 1)[1])))
