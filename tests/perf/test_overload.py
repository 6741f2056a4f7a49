"""The row of a flood: what is made of its requests, and the room that a service is given."""

import asyncio
import math

import pytest

from perf.findings import NotMeasured
from perf.load.flood import Flood, FloodPart, Sent
from perf.load.protocols import Target
from perf.rows.overload import _Bounds, _ends, _milliseconds_alone
from tests.perf.test_load import FakeServer, served

FLOOD = Flood(rate=10.0, seconds=2.0, begin=100.0)
# None within the first half of a second, in which the lanes fill.
ANSWERED = [Sent(100 + index / 2, 100.8 + index / 2, "") for index in range(3)]
TURNED_AWAY = [Sent(100 + index / 8, 100.01 + index / 8, "HTTP 503: no room") for index in range(16)]


def test_answers_within_the_flood_are_throughput_and_refusals_are_not() -> None:
    late = Sent(101.4, 102.5, "")
    parts = [FloodPart([*ANSWERED, late], cpu_seconds=0.3), FloodPart(TURNED_AWAY, cpu_seconds=0.5)]
    ends = _ends(parts, FLOOD, cores=2)
    assert ends["images/s in the flood"] == 2.0
    assert ends["generators' cores"] == pytest.approx(0.4)
    assert ends["images/s in the flood, discounted"] == pytest.approx(2.5)
    assert _ends(parts, FLOOD, cores=math.inf)["images/s in the flood, discounted"] == 2.0
    assert ends["offered images/s"] == 10.0
    assert ends["share turned away"] == pytest.approx(16 / 20)
    assert ends["ms accepted, p99"] == pytest.approx(1100, rel=0.05)
    assert ends["ms turned away, p99"] == pytest.approx(10)


@pytest.mark.parametrize(
    ("requests", "complaint"),
    [
        ([*ANSWERED, Sent(100, 101, "HTTP 500: internal")], "1 of 4 requests failed, one of them with: HTTP 500"),
        (TURNED_AWAY, "none of the requests was answered"),
    ],
)
def test_other_ends_make_the_row_not_measured(requests: list[Sent], complaint: str) -> None:
    with pytest.raises(NotMeasured, match=complaint):
        _ends([FloodPart(requests, cpu_seconds=0.1)], FLOOD, cores=2)


@pytest.mark.parametrize(
    ("rate", "bounds"),
    [
        (4.0, "--lanes 2 --max-batch-size 4 --max-queue-size 8 --queue-timeout-ms 8000"),
        (40.0, "--lanes 2 --max-batch-size 5 --max-queue-size 10 --queue-timeout-ms 1000"),
        (600.0, "--lanes 2 --max-batch-size 60 --max-queue-size 150 --queue-timeout-ms 1000"),
    ],
)
def test_a_service_gets_room_for_half_a_second_of_its_work_or_a_few_images(rate: float, bounds: str) -> None:
    assert " ".join(_Bounds.for_rate(rate).arguments) == bounds


def test_a_failed_request_after_the_flood_makes_the_row_not_measured() -> None:
    with served(FakeServer(fail_every=3)) as url, pytest.raises(NotMeasured, match="alone failed: HTTP 503"):
        asyncio.run(_milliseconds_alone(Target("fake", "kserve-http", url)))
