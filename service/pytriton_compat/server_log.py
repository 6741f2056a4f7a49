"""What tritonserver prints: bytes -> lines of the service's log.

It must not know what the lines mean.
"""

import logging
import os
from typing import IO

logger = logging.getLogger("tritonserver")

# With the bracket begins what its HTTP parser prints for each request that comes before the last one's answer: anybody
# could fill the log with it.
_LEVELS = {"I": logging.INFO, "W": logging.WARNING, "E": logging.ERROR, "[": logging.DEBUG}
_MOST_CHARACTERS = 500
_MOST_BYTES = 2**16  # at a time


class ServerLog:
    """Makes its output lines of the log, and keeps the last one.

    Attributes:
        is_serving: whether its errors are errors: while it starts without a GPU, and while it drains, it prints some
            that are none.
    """

    def __init__(self) -> None:
        """Begin with an empty line."""
        self.is_serving = False
        self._line = self._last_line = ""

    @property
    def last_words(self) -> str:
        """For a message about its end."""
        return f"its last line: {self._last_line[:_MOST_CHARACTERS]}"

    def follow(self, stream: IO[bytes]) -> None:
        """Log all that comes, until its end. Whoever prints waits for this, and clients can make Triton print much."""
        with stream:
            while output := os.read(stream.fileno(), _MOST_BYTES):
                self.add(output)

    def add(self, output: bytes) -> None:
        """Log what has become whole lines."""
        *lines, self._line = (self._line + output.decode(errors="replace")).split("\n")
        for line in filter(None, map(str.strip, lines)):
            self._last_line = line
            level = _LEVELS.get(line[0], logging.INFO) if self.is_serving else logging.DEBUG
            logger.log(level, "%s", line)
