"""The soak: its account of requests adds up, what is wrong is counted, and too little of it gives no slope."""

import asyncio
import itertools
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perf import images, soak
from perf.load.cases import Case, Outcome, Photographs, WrongAnswer, cases
from perf.load.mixed import Account, MixedLoad
from perf.load.protocols import Target
from perf.load.wire import Answer
from perf.report import render
from perf.vitals import Vitals
from tests.perf.test_command import run

CASES = {case.name: case for case in cases()}
EXPECTED = np.eye(4, 8, dtype=np.float32)


class FixedWire:
    """Every request gets the same answer."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    async def post(self, body: bytes, headers: dict[str, str]) -> Answer:
        """Over HTTP."""
        return self._answer

    async def call(self, request: Any) -> Answer:
        """Over gRPC."""
        return self._answer


def outcome(case: Case, answer: Answer) -> Outcome:
    """How the first request of a case ends when it gets this answer."""
    return asyncio.run(case.send(FixedWire(answer), Photographs(EXPECTED)))  # type: ignore[arg-type]


def embedding(index: int) -> Answer:
    """What the photograph of this index must get."""
    return Answer(200, 3 * EXPECTED[index : index + 1])


def failure(status: int, message: str) -> Answer:
    """An error."""
    return Answer(status, np.empty((0, 0), np.float32), message)


@pytest.mark.parametrize(
    ("case", "answer", "expected"),
    [
        ("raw HTTP", embedding(0), Outcome.ANSWERED),
        ("raw HTTP", failure(503, "Exceeds maximum queue size"), Outcome.NO_ROOM),
        ("gRPC", failure(503, "UNAVAILABLE: Request timeout expired"), Outcome.NO_ROOM),
        ("gRPC", failure(400, "incomplete string data for inference input 'INPUT_IMAGE', ..."), Outcome.BATCH_FAILED),
        ("damaged PNG", failure(400, "corrupt_image: it is"), Outcome.REFUSED),
        ("damaged PNG", failure(503, "Exceeds maximum queue size"), Outcome.NO_ROOM),
        ("length that lies", failure(400, "... for inference input 'INPUT_IMAGE', ..."), Outcome.REFUSED),
    ],
)
def test_the_right_answers_are_told_apart(case: str, answer: Answer, expected: Outcome) -> None:
    assert outcome(CASES[case], answer) is expected


@pytest.mark.parametrize(
    ("case", "answer"),
    [
        ("raw HTTP", embedding(1)),
        ("raw HTTP", Answer(200, np.full((1, 8), np.nan, np.float32))),
        ("raw HTTP", Answer(200, EXPECTED)),
        ("raw HTTP", failure(500, "internal_error: the request could not be answered")),
        ("gRPC", failure(503, "UNAVAILABLE: failed to connect to all addresses")),
        ("damaged PNG", embedding(0)),
        ("damaged PNG", failure(400, "unsupported_format: the bytes are none")),
        ("damaged PNG", failure(500, "corrupt_image: it is")),
    ],
)
def test_anything_else_is_wrong(case: str, answer: Answer) -> None:
    with pytest.raises(WrongAnswer):
        outcome(CASES[case], answer)


def test_photographs_are_never_the_same_bytes_and_keep_their_embedding() -> None:
    photographs = Photographs(EXPECTED)
    taken = [photographs.take(count) for count in (1, 3, 8)]
    rows = [row for rows, _ in taken for row in rows]
    assert len(set(rows)) == 12 and not set(rows) & set(images.shipped())
    expected = np.concatenate([expected for _, expected in taken])
    assert np.array_equal(expected, np.concatenate([EXPECTED] * 3))


def test_every_request_sent_has_one_end_and_wrong_ones_are_counted_by_message() -> None:
    load = MixedLoad(Target("", "kserve-http", ""), Target("", "kserve-grpc", ""))

    async def send(answer: Answer, count: int) -> None:
        wire, photographs = FixedWire(answer), Photographs(EXPECTED)
        for _ in range(count):
            await load._send(CASES["raw HTTP"], wire, photographs)  # type: ignore[arg-type]

    asyncio.run(send(embedding(0), 8))  # the first, the fifth are right
    asyncio.run(send(failure(500, "internal_error"), 3))
    account = load.account
    assert account.sent == {"raw HTTP": 11}
    assert account.total(Outcome.ANSWERED) == len(account.take_latencies()) == 2
    assert account.take_latencies() == []
    assert account.unaccounted == account.wrong.total() == 9
    assert account.wrong["raw HTTP: WrongAnswer: 500: internal_error"] == 3


def samples(minutes: float, mb_a_minute: float) -> list[soak.Sample]:
    """A service that grows steadily, looked at every five seconds; in its first minute it takes 300 MB."""
    moments = [index / 12 for index in range(1, round(12 * minutes) + 1)]
    return [
        soak.Sample(
            moment,
            Vitals({"service": 100 + 300 * min(1.0, moment) + mb_a_minute * moment}, 1.0, 7, 9),
            [0.01, 0.02] if index % 2 else [],
            5.0,
        )
        for index, moment in enumerate(moments)
    ]


def test_the_slope_leaves_out_the_first_minute_and_shows_both_ends() -> None:
    findings = soak.findings(samples(10, 2.0), Account())
    slope, *_ = findings.figures
    assert slope.median == pytest.approx(2.0) and slope.is_met is False
    assert render(slope) == "2 MB a minute"
    assert slope.note == "medians of its first and last minute: 404 MB, 420 MB; 109 samples"
    over_time, _ = findings.tables
    assert list(over_time.points) == [str(minute) for minute in range(1, 12)]
    assert len(over_time.points["2"]["memory MB"]) == 12 and len(over_time.points["2"]["p50 ms"]) == 6


@pytest.mark.parametrize("seed", range(6))
def test_what_comes_and_goes_gives_no_slope(seed: int) -> None:
    """As it does in tritonserver: within each second, and with the waves. A second is not quite one."""
    random.seed(seed)
    looks = [at + 0.001 * number for number, at in enumerate(itertools.islice(soak._moments(0.0), 600))]
    in_heaps = [10 * (at % 1) + 30 * (at % 20.02 > 13) for at in looks]
    seen = [
        soak.Sample(at / 60, Vitals({"tritonserver": size}, 1.0, 7, 9), [], 1.0)
        for at, size in zip(looks, in_heaps, strict=True)
    ]
    slope, *_ = soak.findings(seen, Account()).figures
    assert abs(slope.median) < 0.3


@pytest.mark.parametrize("minutes", [0.0, 0.1, 5.9])
def test_a_short_soak_gives_no_slope(minutes: float) -> None:
    slope, *_ = soak.findings(samples(minutes, 0.0), Account()).figures
    assert render(slope).startswith("not enough samples")


def test_a_soak_of_seconds_against_the_real_service_accounts_for_every_request(tmp_path: Path) -> None:
    result = run("soak", "--minutes", "0.1", "--device", "cpu", "--output", str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert "of 0.1 min: " in result.stdout and " sent, 0 wrong" in result.stdout
    (path,) = tmp_path.glob("*.json")
    row = json.loads(path.read_text())["rows"]["soak"]
    assert row["conditions"]["minutes"] == 0.1 and row["not_measured"] == ""
    figures = {figure["name"]: figure for figure in row["findings"]["figures"]}
    assert figures["requests without the right answer"]["samples"] == [0], row["findings"]["notes"]
    over_time, by_case = row["findings"]["tables"]
    ends: Counter[str] = Counter()
    for columns in by_case["points"].values():
        ends.update({name: value for name, (value,) in columns.items()})
    assert ends["answered"] > 0 and ends["refused with its code"] > 0 and ends["dropped by the client"] > 0
    assert ends.pop("sent") == ends.total()
    roles = [over_time["points"]["1"][f"{role} MB"] for role in soak.ROLES]
    assert all(size > 1 for sizes in roles for size in sizes)
    report = path.with_suffix(".md").read_text()
    assert "not enough samples" in report and f"![{path.stem}-soak.svg]" in report
    assert path.with_name(f"{path.stem}-soak.svg").exists()
