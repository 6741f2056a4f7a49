"""TCP ports that something of ours is to listen on later: are they free, and which are.

It must not know what listens there.
"""

import contextlib
import os
import random
import socket
from collections.abc import Collection, Mapping

from service.errors import StartupFault

# Below those that Linux gives to outgoing connections (32768 and up): one of these could take a port that was free a
# moment ago, seconds before whatever it is meant for listens there.
_PORTS = range(20_000, 30_000)
_TRIES = 100
_PLACE = 8  # ports for each process id
_PROCESS_IDS = "/proc/self/ns/pid"


def check_ports_are_free(host: str, ports: Mapping[str, int]) -> None:
    """Look at those ports of the address `host`, each by the name of its setting.

    Raises:
        StartupFault: one of them is taken, or is not for us.
    """
    for name, port in ports.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                option = name.replace("_", "-")
                raise StartupFault(
                    f"cannot listen on {host}:{port} ({error.strerror}); change --host or --{option}"
                ) from error


def free_ports(count: int, taken: Collection[int] = ()) -> list[int]:
    """Different ports of the loopback interface that nothing listens on.

    Args:
        taken: ports that something else is to listen on later.

    Raises:
        StartupFault: there are not as many among a hundred.
    """
    ports: list[int] = []
    first = _first()
    with contextlib.ExitStack() as probes:
        for number in range(_TRIES):
            port = _PORTS[(first + number) % len(_PORTS)]
            if port in taken:
                continue
            with contextlib.suppress(OSError):
                probes.enter_context(socket.socket()).bind(("127.0.0.1", port))
                ports.append(port)
            if len(ports) == count:
                return ports
    raise StartupFault(f"{count} free ports between {_PORTS[0]} and {_PORTS[-1]} were not to be found")


def _first() -> int:
    """Where to look first: elsewhere than services that start at the same time, as nothing listens yet on their finds.

    Those of one container have different process ids. Containers may share their ports, as those of a pod do, but each
    has ids of its own, and all of their services the same one.
    """
    return random.Random(os.stat(_PROCESS_IDS).st_ino).randrange(len(_PORTS)) + os.getpid() * _PLACE
