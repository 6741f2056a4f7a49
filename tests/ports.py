"""Ports for the tests' own servers."""

import contextlib
import itertools
import os
import random
import socket
from collections.abc import Iterator


def _ports() -> Iterator[int]:
    """Ports of this process alone: those of one test run take turns, from where no other run is likely to be."""
    worker, workers = os.environ.get("PYTEST_XDIST_WORKER", "gw0"), os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")
    first = random.Random(os.environ.get("PYTEST_XDIST_TESTRUNUID")).randrange(10_000, 18_000)
    return itertools.count(first + int(worker.removeprefix("gw")), int(workers))


# Each is handed out once: what starts at the same time must not be told the same.
_PORTS = _ports()


def unused_port() -> int:
    """A port of the loopback interface that nothing listens on, another one each time."""
    while True:
        port = next(_PORTS)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
