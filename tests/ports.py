"""Ports for the tests' own servers."""

import contextlib
import socket
from collections.abc import Iterator

# Below those that services look for by themselves, and systems give to whoever asks for any.
_BLOCKS = range(10_000, 20_000, 500)


def _claim() -> tuple[socket.socket, Iterator[int]]:
    """The first port of a block, held as long as this process runs, and the others, which are its alone by that."""
    for first in _BLOCKS:
        guard = socket.socket()
        with contextlib.suppress(OSError):
            guard.bind(("127.0.0.1", first))
            return guard, iter(range(first + 1, first + _BLOCKS.step))
        guard.close()
    raise OSError("other tests have all the ports")


# Each is handed out once: what starts at the same time must not be told the same.
_GUARD, _PORTS = _claim()


def unused_port() -> int:
    """A port of the loopback interface that nothing listens on, another one each time."""
    while True:
        port = next(_PORTS)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
