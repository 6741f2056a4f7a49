"""Where something under test runs: this machine as it is, or network namespaces on one bridge, each a host of its own.

Comes in: names of hosts. Goes out: for each an address, commands that run there, and calls from there. Namespaces need
root and iproute2; nothing of them shows outside, and all are gone at the end.
"""

import contextlib
import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from perf.findings import NotMeasured
from service.process.ports import free_ports

T = TypeVar("T")

_NEW_NETWORK = 0x40000000  # CLONE_NEWNET of setns(2)
_DEFAULT_PORTS = [8000, 8001, 8002]


class NoNamespaces(NotMeasured):
    """This process may not make network namespaces."""


class Host:
    """This machine, where all share the loopback interface."""

    address = "127.0.0.1"

    def ports(self) -> list[int]:
        """Three ports for a service: HTTP, gRPC, metrics."""
        return free_ports(3)

    def command(self, *words: str) -> list[str]:
        """The words of a command that runs there, in the process that is started with them."""
        return list(words)

    def call(self, function: Callable[[], T]) -> T:
        """What the function returns there."""
        return function()


class Namespace(Host):
    """A network namespace that exists, and is entered by one thread."""

    def __init__(self, name: str, address: str, thread: ThreadPoolExecutor) -> None:
        self.address = address
        self._name = name
        self._thread = thread

    def ports(self) -> list[int]:
        """The default ones: nobody else is there."""
        return _DEFAULT_PORTS

    def command(self, *words: str) -> list[str]:
        """`ip netns exec` becomes the command, so that its process is the command's."""
        return ["ip", "netns", "exec", self._name, *words]

    def call(self, function: Callable[[], T]) -> T:
        """The function runs in the namespace's thread, after those that were called before."""
        return self._thread.submit(function).result()


@contextlib.contextmanager
def network(*names: str) -> Iterator[dict[str, Namespace]]:
    """A namespace for each name, with addresses from 10.77.0.1 up; they reach each other and nothing else.

    Raises:
        NoNamespaces: this process may not make any.
    """
    if not shutil.which("ip"):
        raise NoNamespaces("iproute2 is not installed")
    with contextlib.ExitStack() as stack:
        switch = f"embed-{os.getpid()}-switch"
        _make_namespace(stack, switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        hosts = {}
        for number, name in enumerate(names, 1):
            space, address = f"embed-{os.getpid()}-{name}", f"10.77.0.{number}"
            _make_namespace(stack, space)
            _plug_in(space, address, switch, f"port{number}")
            thread = stack.enter_context(ThreadPoolExecutor(1, initializer=_enter, initargs=(space,)))
            hosts[name] = Namespace(space, address, thread)
        yield hosts


def _make_namespace(stack: contextlib.ExitStack, name: str) -> None:
    _ip("netns", "add", name)
    stack.callback(_ip, "netns", "delete", name)
    _ip("-n", name, "link", "set", "lo", "up")


def _plug_in(space: str, address: str, switch: str, port: str) -> None:
    """A cable between the namespace and the bridge."""
    _ip("-n", space, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", switch)
    _ip("-n", switch, "link", "set", port, "master", "bridge", "up")
    _ip("-n", space, "address", "add", f"{address}/24", "dev", "eth0")
    _ip("-n", space, "link", "set", "eth0", "up")


def _ip(*words: str) -> None:
    result = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if result.returncode:
        raise NoNamespaces(f"ip {' '.join(words)}: {result.stderr.strip()}")


def _enter(space: str) -> None:
    """Move this thread, and no other, into the namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{space}") as file:
        if libc.setns(file.fileno(), _NEW_NETWORK):
            raise OSError(ctypes.get_errno(), f"cannot enter {space}")
