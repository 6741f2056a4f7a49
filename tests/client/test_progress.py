"""What a run says must not end it."""

import errno
import os
import re
import sys

import pytest

from service.client.progress import Progress, say


class FullTerminal:
    """As a terminal that another process has told not to wait, and that nobody reads."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.asked = 0

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return 2

    def write(self, text: str) -> int:
        self.asked += 1
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def flush(self) -> None:
        self.write("")


def test_a_terminal_that_takes_nothing_ends_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = FullTerminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((80, 24)))
    progress = Progress()
    for _ in range(3):
        progress.count(1, 1, 3)
    say("done")
    progress.close()
    assert progress.done == progress.failed == 3 and terminal.asked


def test_where_nobody_watches_a_line_tells_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress()
    for failed, total in ((0, None), (1, 8)):
        progress.count(2, failed, total)
        progress.line(total)
    progress.close()
    first, second = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"2/\? images \[[^]]* images/s\]", first)
    assert re.fullmatch(r"4/8 images \[[^]]* images/s, 1 failed\]", second)
