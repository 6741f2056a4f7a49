"""Ports for the tests' own servers."""

import contextlib
import itertools
import random
import socket

# Each is handed out once: what starts at the same time must not be told the same.
_PORTS = itertools.count(random.randrange(10_000, 18_000))


def unused_port() -> int:
    """A port of the loopback interface that nothing listens on, another one each time."""
    while True:
        port = next(_PORTS)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
