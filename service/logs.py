"""How the service logs: one line an event, as text or as JSON, without tracebacks and paths, and never a flood.

Comes in: the records of every logger, and what nothing else has caught. Goes out: lines on stderr, for which nobody who
logs ever waits. It must not know who logs what.
"""

import contextlib
import copy
import logging
import queue
import re
import sys
import threading
import time
import traceback
from collections import Counter
from types import TracebackType
from typing import TextIO

from pythonjsonlogger.json import JsonFormatter

logger = logging.getLogger(__name__)

RECORDS_A_MINUTE = 10
_WINDOW_SECONDS = 60.0
_MAX_CHARACTERS = 2000
_MOST_WAITING_LINES = 1000
_FLUSH_SECONDS = 2.0
# A URL, a hub id and a relative path hold slashes, too, but none that stands alone before a name.
_ABSOLUTE_PATH = re.compile(r"""(?<![\w:/.*~-])/(?:[^\s/:'"]+/)*([^\s/:'"]+)/?""")


def configure_logging(level: str, log_format: str) -> None:
    """Log to stderr from now on: what is of `level` or above, as `text` or as `json`.

    At `debug` nothing is shortened or held back: tracebacks and paths are there, and whatever repeats itself.
    """
    logging.basicConfig(handlers=[build_handler(sys.stderr, level, log_format)])
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = sys.unraisablehook = _log_unraised
    for ours in ("service", "tritonserver"):
        logging.getLogger(ours).setLevel(level.upper())
    # It would warn of each model's configuration that is written twice.
    logging.getLogger("pytriton").setLevel(logging.ERROR)


def build_handler(stream: TextIO, level: str, log_format: str) -> logging.Handler:
    """The handler that writes all records, as `configure_logging` says."""
    handler = LineWriter(stream)
    formatter = _json_formatter() if log_format == "json" else _TextFormatter()
    handler.setFormatter(formatter if level == "debug" else _Brief(formatter))
    if level != "debug":
        handler.addFilter(RateLimit())
    return handler


class LineWriter(logging.Handler):
    """Writes lines to a stream in a thread of its own.

    Where nobody reads them (a terminal is held, a log driver hangs) those that have no room to wait are dropped, and
    the next one tells by `record.lost` how many: nothing stands still for its log.
    """

    def __init__(self, stream: TextIO) -> None:
        """Write to `stream` from now on."""
        super().__init__()
        self._stream = stream
        self._lines: queue.Queue[str] = queue.Queue(_MOST_WAITING_LINES)
        self._lost = 0
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Hand the record's line over, or drop it."""
        if self._lost:
            record.lost = self._lost
        try:
            self._lines.put_nowait(self.format(record))
            self._lost = 0
        except queue.Full:
            self._lost += 1
        except Exception:
            self.handleError(record)

    def flush(self) -> None:
        """Wait until all is written, or a little."""
        with self._lines.all_tasks_done:
            self._lines.all_tasks_done.wait_for(lambda: self._lines.unfinished_tasks == 0, _FLUSH_SECONDS)

    def _write(self) -> None:
        while True:
            line = self._lines.get()
            with contextlib.suppress(OSError, ValueError):  # nobody can read it any more
                self._stream.write(f"{line}\n")
                self._stream.flush()
            self._lines.task_done()


class RateLimit(logging.Filter):
    """Lets few records a minute pass of each kind, and tells by `record.suppressed` how many it held back before.

    A kind is a message before its arguments are put in, of one logger and level, and where a record has a `code`, that
    code. Safe to use from several threads.
    """

    def __init__(self) -> None:
        """The first minute begins."""
        super().__init__()
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._seen: Counter[object] = Counter()
        self._suppressed: Counter[object] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is among the first of its kind in this minute."""
        kind = record.name, record.levelno, str(record.msg), getattr(record, "code", "")
        with self._lock:
            if time.monotonic() - self._started >= _WINDOW_SECONDS:
                self._started = time.monotonic()
                self._seen.clear()
            self._seen[kind] += 1
            if self._seen[kind] > RECORDS_A_MINUTE:
                self._suppressed[kind] += 1
                return False
            suppressed = self._suppressed.pop(kind, 0)
        if suppressed:
            record.suppressed = suppressed
        return True


class _Brief(logging.Formatter):
    """Hands each record to another formatter as one short line: no traceback, no path of the file system."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self._formatter = formatter

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if record.exc_info and record.exc_info[1]:
            message += f": {_describe(record.exc_info[1])}"
        brief = copy.copy(record)
        line = " ".join(message.splitlines())
        # The line that says why the service ended says it whole, in text as in JSON.
        if record.levelno < logging.CRITICAL:
            line = _ABSOLUTE_PATH.sub(r"\1", line)
        brief.msg = line[:_MAX_CHARACTERS]
        brief.args, brief.exc_info, brief.exc_text, brief.stack_info = (), None, None, None
        return self._formatter.format(brief)


class _TextFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        line, extra = super().formatMessage(record), vars(record)
        if "request_id" in extra:
            line += f" (request {extra['request_id']!r})"
        if "suppressed" in extra:
            line += f" ({extra['suppressed']} more of this kind were held back)"
        if "lost" in extra:
            line += f" ({extra['lost']} lines before it were lost: nobody read them)"
        return line


def _json_formatter() -> logging.Formatter:
    return JsonFormatter(
        ["levelname", "name", "message"], rename_fields={"levelname": "level", "name": "logger"}, timestamp=True
    )


def _describe(error: BaseException) -> str:
    """Type, first line of the message, and the line of code, e.g. `ValueError: too long (service.pipeline:12)`."""
    first_line, *_ = f"{type(error).__name__}: {error}".splitlines()
    frames = list(traceback.walk_tb(error.__traceback__))
    if not frames:
        return first_line
    frame, line = frames[-1]
    return f"{first_line} ({frame.f_globals.get('__name__')}:{line})"


def _log_uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    """Instead of the interpreter's own traceback."""
    if not issubclass(kind, SystemExit | KeyboardInterrupt):
        logger.critical("an exception was not caught", exc_info=(kind, error or kind(), trace))


def _log_unraised(args: "threading.ExceptHookArgs | sys.UnraisableHookArgs") -> None:
    """Of a thread, or of where Python can raise nothing, as in a destructor."""
    _log_uncaught(args.exc_type, args.exc_value, args.exc_traceback)
