"""One line an event in either format, nothing that gives the server away, and no flood."""

import contextlib
import errno
import io
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from service.logs import RECORDS_A_MINUTE, RateLimit, build_handler

Log = Callable[[logging.Logger], object]


def _lines(log: Log, level: str = "info", log_format: str = "text", kind: type[io.StringIO] = io.StringIO) -> list[str]:
    """What a handler makes of the records that `log` hands to a logger, on a stream of this kind."""
    stream, logger = kind(), logging.Logger("service.room")
    with contextlib.closing(build_handler(stream, level, log_format)) as handler:
        logger.addHandler(handler)
        log(logger)
        handler.flush()
    return stream.getvalue().splitlines()


def _events(log: Log) -> list[dict[str, Any]]:
    return [json.loads(line) for line in _lines(log, log_format="json")]


def _fail(logger: logging.Logger) -> None:
    try:
        raise RuntimeError("no /models/secret/weights.bin\nbut a second line")
    except RuntimeError:
        logger.exception("a batch of %d failed", 3)


def _flood(logger: logging.Logger) -> None:
    for _ in range(99):
        logger.error("failed")


def test_an_event_is_one_json_object_with_its_fields() -> None:
    (event,) = _events(lambda logger: logger.info("%s ok", "all", extra={"request_id": "a\nb", "code": "käse"}))
    age = datetime.now(UTC) - datetime.fromisoformat(event.pop("timestamp"))
    assert timedelta(0) <= age < timedelta(minutes=5)
    assert event == {
        "level": "INFO", "logger": "service.room", "message": "all ok", "request_id": "a\nb", "code": "käse",
    }  # fmt: skip


def test_an_event_is_one_line_of_text_with_its_request() -> None:
    (line,) = _lines(lambda logger: logger.info("all\nwell", extra={"request_id": "a\nb"}))
    assert line.endswith(r" INFO service.room: all well (request 'a\nb')")
    (line,) = _lines(lambda logger: logger.info("x" * 10**5))
    assert line.count("x") == 2000


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_an_exception_is_one_line_without_traceback_or_path(log_format: str) -> None:
    (line,) = _lines(_fail, log_format=log_format)
    assert f"a batch of 3 failed: RuntimeError: no weights.bin ({__name__}:" in line
    assert "Traceback" not in line and "secret" not in line and "second line" not in line


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_at_debug_nothing_is_left_out(log_format: str) -> None:
    output = "\n".join(_lines(_fail, "debug", log_format))
    assert "Traceback" in output and "/models/secret/weights.bin" in output and "second line" in output
    assert len(_lines(_flood, "debug", log_format)) == 99


@pytest.mark.parametrize(
    ("message", "logged"),
    [
        ("cannot open '/srv/models/x.bin': gone", "cannot open 'x.bin': gone"),
        ("path=/srv/a/b/ and (/etc/passwd)", "path=b and (passwd)"),
        ("/srv/x.py:12: UserWarning: old\n  call()\n", "x.py:12: UserWarning: old   call()"),
        ("see http://127.0.0.1:8000/v2/models/a/infer", "see http://127.0.0.1:8000/v2/models/a/infer"),
        ("google/siglip-so400m and ./models/x at 3 images/s", "google/siglip-so400m and ./models/x at 3 images/s"),
        ("sed 's/.*/{&}/' | curl", "sed 's/.*/{&}/' | curl"),
    ],
)
def test_of_a_path_its_last_part_is_logged_and_nothing_else_changes(message: str, logged: str) -> None:
    assert [event["message"] for event in _events(lambda logger: logger.warning("%s", message))] == [logged]


def test_an_exception_without_words_or_frames_is_named_all_the_same() -> None:
    (event,) = _events(lambda logger: logger.error("failed", exc_info=MemoryError()))
    assert event["message"] == "failed: MemoryError: "
    (event,) = _events(lambda logger: logger.exception("nothing was raised"))
    assert event["message"] == "nothing was raised"


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds of a clock that a test moves on."""
    now = [1000.0]
    monkeypatch.setattr("service.logs.time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def _record(template: str = "%d", level: int = logging.ERROR, name: str = "service.room", **extra: object) -> Any:
    record = logging.LogRecord(name, level, __file__, 1, template, (1,), None)
    vars(record).update(extra)
    return record


def test_few_records_a_minute_pass_and_the_next_tells_of_the_others(now: list[float]) -> None:
    limit = RateLimit()
    passed = [limit.filter(_record()) for _ in range(RECORDS_A_MINUTE + 5)]
    assert passed == [True] * RECORDS_A_MINUTE + [False] * 5
    now[0] += 59.9
    assert not limit.filter(_record())
    now[0] += 0.1
    first, second = _record(), _record()
    assert limit.filter(first) and limit.filter(second)
    assert first.suppressed == 6 and not hasattr(second, "suppressed")
    passed = [limit.filter(_record()) for _ in range(RECORDS_A_MINUTE)]
    assert passed == [True] * (RECORDS_A_MINUTE - 2) + [False] * 2


@pytest.mark.parametrize(
    "other",
    [
        {"template": "other %d"},
        {"level": logging.WARNING},
        {"name": "tritonserver"},
        {"code": "corrupt_image"},
    ],
    ids=str,
)
@pytest.mark.usefixtures("now")
def test_a_flood_of_one_kind_costs_no_other_kind_its_lines(other: dict[str, Any]) -> None:
    limit = RateLimit()
    flood = [limit.filter(_record()) for _ in range(1000)]
    assert sum(flood) == RECORDS_A_MINUTE
    assert limit.filter(_record(**other))


class Interruptible(str):
    """A name at each of whose look-ups another thread has its turn."""

    def __hash__(self) -> int:
        time.sleep(0)
        return super().__hash__()


def test_many_threads_together_are_limited_like_one(now: list[float]) -> None:
    limit, passed, name = RateLimit(), list[bool](), Interruptible("service.room")

    def flood() -> None:
        passed.extend(limit.filter(_record(name=name)) for _ in range(500))

    threads = [threading.Thread(target=flood) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(passed) == RECORDS_A_MINUTE
    now[0] += 60
    last = _record()
    assert limit.filter(last) and last.suppressed == 4000 - RECORDS_A_MINUTE


def test_a_handler_holds_a_flood_back_and_its_lines_tell() -> None:
    assert len(_lines(_flood)) == RECORDS_A_MINUTE
    (line,) = _lines(lambda logger: logger.error("failed", extra={"suppressed": 7}))
    assert line.endswith(" failed (7 more of this kind were held back)")


class HeldTerminal(io.StringIO):
    """A stream whose writer waits until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.has_writer, self.let_go = threading.Event(), threading.Event()

    def write(self, text: str) -> int:
        self.has_writer.set()
        assert self.let_go.wait(60)
        return super().write(text)


def test_whoever_logs_never_waits_for_whoever_reads_and_the_next_line_tells_what_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.logs._MOST_WAITING_LINES", 3)
    monkeypatch.setattr("service.logs._FLUSH_SECONDS", 0.1)
    stream, logger = HeldTerminal(), logging.Logger("service.room")
    with contextlib.closing(build_handler(stream, "info", "text")) as handler:
        logger.addHandler(handler)
        logger.error("line 0")
        assert stream.has_writer.wait(60)
        for number in range(1, 9):
            logger.error(f"line {number}")
        handler.flush()
        assert stream.getvalue() == ""
        stream.let_go.set()
        monkeypatch.setattr("service.logs._FLUSH_SECONDS", 60)
        handler.flush()
        logger.error("line 9")
        logger.error("line 10")
        handler.flush()
    told = [line.partition("service.room: ")[2] for line in stream.getvalue().splitlines()]
    last = "line 9 (5 lines before it were lost: nobody read them)"
    assert told == ["line 0", "line 1", "line 2", "line 3", last, "line 10"]


class Choosy(io.StringIO):
    """A stream that takes no question."""

    def write(self, text: str) -> int:
        if "?" in text:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(text)


def test_an_event_that_cannot_be_written_harms_neither_who_logs_it_nor_the_next_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def log(logger: logging.Logger) -> None:
        logger.error("%d", "no number")
        logger.error("why?")
        logger.error("last")

    (line,) = _lines(log, kind=Choosy)
    assert line.endswith(" ERROR service.room: last")
    assert "TypeError: %d format: a real number is required" in capsys.readouterr().err


@contextmanager
def _configured(level: str, program: str) -> Iterator[list[dict[str, Any]]]:
    code = f"from service.logs import configure_logging; configure_logging({level!r}, 'json')\n{program}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    yield [json.loads(line) for line in result.stderr.splitlines()]


def test_whatever_is_not_caught_is_logged_as_well() -> None:
    program = (
        "import sys, threading, warnings; warnings.warn('old', stacklevel=1)\n"
        "for work in (sys.exit, lambda: 1 / 0): thread = threading.Thread(target=work); thread.start(); thread.join()\n"
        "class Resource:\n"
        "    def __del__(self): {}['closed']\n"
        "Resource()\n"
        "[][0]"
    )
    with _configured("info", program) as events:
        warning, *errors = [event["message"] for event in events]
    assert warning.startswith("<string>:2: UserWarning: old")
    assert errors == [
        "an exception was not caught: ZeroDivisionError: division by zero (__main__:3)",
        "an exception was not caught: KeyError: 'closed' (__main__:5)",
        "an exception was not caught: IndexError: list index out of range (__main__:7)",
    ]


def test_levels_are_those_asked_for_and_pytriton_says_little() -> None:
    program = (
        "import logging\n"
        "for name in ('service.server', 'tritonserver', 'pytriton', 'urllib3'):\n"
        "    for level in (20, 30, 40): logging.getLogger(name).log(level, 'token')"
    )
    with _configured("info", program) as events:
        seen = [f"{event['logger']} {event['level']}" for event in events]
    assert seen == [
        "service.server INFO", "service.server WARNING", "service.server ERROR",
        "tritonserver INFO", "tritonserver WARNING", "tritonserver ERROR",
        "pytriton ERROR", "urllib3 WARNING", "urllib3 ERROR",
    ]  # fmt: skip
