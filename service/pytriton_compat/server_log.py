"""What tritonserver prints: bytes -> lines of the service's log.

It must not know what the lines mean.
"""

import logging

logger = logging.getLogger("tritonserver")

# With the bracket begins what its HTTP parser prints for each request that comes before the last one's answer: anybody
# could fill the log with it.
_LEVELS = {"I": logging.INFO, "W": logging.WARNING, "E": logging.ERROR, "[": logging.DEBUG}
_MOST_CHARACTERS = 500


class ServerLog:
    """Takes the place of PyTriton's own, which keeps all that Triton ever prints.

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

    def add(self, output: bytes | str) -> None:
        """Log what has become whole lines."""
        text = output.decode("utf-8", errors="replace") if isinstance(output, bytes) else output
        *lines, self._line = (self._line + text).split("\n")
        for line in filter(None, map(str.strip, lines)):
            self._last_line = line
            level = _LEVELS.get(line[0], logging.INFO) if self.is_serving else logging.DEBUG
            logger.log(level, "%s", line)
