"""What is measured is read as it was told, or as it is at that moment."""

from types import SimpleNamespace

import psutil
import pytest
from prometheus_client import generate_latest

from service.metrics import Metrics


def test_the_oldest_stage_in_the_works_is_known_and_how_long_each_took() -> None:
    metrics = Metrics()
    assert metrics.longest_stage() == 0
    with metrics.stage("encode"):
        first = metrics.longest_stage()
        with metrics.stage("decode"):
            assert metrics.longest_stage() > first > 0
    assert metrics.longest_stage() == 0
    assert (metrics.registry.get_sample_value("embed_stage_seconds_sum", {"stage": "encode"}) or 0) > first


def test_a_canarys_age_counts_from_its_last_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 50.0
    monkeypatch.setattr("service.metrics.time", SimpleNamespace(monotonic=lambda: now))
    metrics = Metrics()

    def age() -> float | None:
        return metrics.registry.get_sample_value("embed_canary_age_seconds")

    now += 7
    assert age() == 7
    metrics.canary_answered()
    assert age() == 0
    now += 2
    assert age() == 2


def test_memory_is_read_at_each_scrape_and_left_out_where_there_is_no_such_number() -> None:
    metrics = Metrics()
    assert "embed_encoder_memory_bytes{" not in generate_latest(metrics.registry).decode()
    held = iter([1e9, 3e9])
    metrics.encoder_memory.labels("cuda:0").set_function(lambda: next(held))
    for expected in (1e9, 3e9):
        assert metrics.registry.get_sample_value("embed_encoder_memory_bytes", {"device": "cuda:0"}) == expected


def test_the_service_and_its_process_are_described() -> None:
    metrics = Metrics()
    value = metrics.registry.get_sample_value
    assert value("embed_images_total", {"code": "ok"}) == 0, "rate() sees nothing of what begins with its first event"
    metrics.encoder_failures.inc()
    metrics.triton_restarts.inc()
    metrics.service_info.info({"version": "1.2", "fingerprint": "0123abc"})
    assert value("embed_service_info", {"version": "1.2", "fingerprint": "0123abc"}) == 1
    assert value("embed_encoder_failures_total") == value("embed_triton_restarts_total") == 1
    assert (value("process_resident_memory_bytes") or 0) > 1e6
    assert abs((value("process_start_time_seconds") or 0) - psutil.Process().create_time()) < 10
