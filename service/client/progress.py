"""What a run says, on stderr, and how far it is: a bar on a terminal, elsewhere a line every now and then.

Comes in: words, and what is done. Goes out: lines, rate and time left. It must not know what an image is.
"""

import contextlib
import os
import sys
import time
from typing import Any

from tqdm import tqdm  # type: ignore[import-untyped]

_FORMAT = "{n_fmt}/{total_fmt} images [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


def say(line: str) -> None:
    """A line on stderr. That nobody reads it, or that there is no stderr, ends no run."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(line, file=sys.stderr, flush=True)


def complain(error: object, exit_code: int) -> int:
    """Say the error that ends a run; returns the exit code."""
    say(f"error: {error}")
    return exit_code


class _Stderr:
    """stderr as a bar takes it, with no error of its own."""

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


class Progress:
    """Counts images; `failed` of `done`."""

    def __init__(self) -> None:
        self.done = 0
        self.failed = 0
        self._started = time.monotonic()
        # On a terminal that does not know its size, a bar would be nowhere.
        self._is_terminal = bool(sys.stderr and sys.stderr.isatty() and all(os.get_terminal_size(sys.stderr.fileno())))
        # Answers come in batches, so a rate over few of them would jump.
        self._bar = tqdm(
            file=_Stderr(), unit=" images", disable=not self._is_terminal, smoothing=0.02, dynamic_ncols=True
        )

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._started

    def count(self, images: int, failed: int, total: int | None) -> None:
        """So many images more, and of them so many failed; of as many as are known."""
        self.done += images
        self.failed += failed
        self._bar.total = total
        if failed:
            self._bar.set_postfix(failed=self.failed, refresh=False)
        self._bar.update(images)

    def line(self, total: int | None) -> None:
        """Where nobody watches: how far it is by now."""
        if not self._is_terminal:
            postfix = f"{self.failed} failed" if self.failed else None
            line = tqdm.format_meter(
                self.done, total, self.seconds, unit=" images", postfix=postfix, bar_format=_FORMAT
            )
            say(line)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()
