"""Ports that are still free when something is to listen on them."""

import contextlib
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from service.errors import StartupFault
from service.process import ports
from service.process.ports import free_ports


def test_they_are_different_and_no_outgoing_connection_can_take_one() -> None:
    """Triton opens the port of its metrics last, and ends where it is taken: a service that was ready is gone."""
    outgoing = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    found = free_ports(50)
    assert len(set(found)) == 50 and max(found) < outgoing


def test_one_that_is_taken_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, free = free_ports(2)
    with socket.socket() as occupied:
        occupied.bind(("127.0.0.1", taken))
        occupied.listen()
        assert free_ports(1) == [free]
        assert free_ports(1, {free}) not in ([taken], [free])
        monkeypatch.setattr(ports, "_TRIES", 1)
        with pytest.raises(StartupFault, match="1 free ports between 20000 and 29999"):
            free_ports(1)


def test_services_that_start_at_the_same_time_look_in_different_places(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for pid in range(4000, 4100):
        monkeypatch.setattr("os.getpid", lambda pid=pid: pid)
        found += free_ports(3)
    assert len(set(found)) == len(found)


FIND = """
import os, sys
from service.process.ports import free_ports
print(os.getpid(), free_ports(2), flush=True)
sys.stdin.read()
"""


def test_services_of_containers_that_share_their_ports_do_so_too() -> None:
    """Each is process 1 in its own."""
    isolated = ("unshare", "--pid", "--fork")
    if subprocess.run([*isolated, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no namespaces of processes: root is needed")
    with contextlib.ExitStack() as containers:
        outputs = []
        for _ in range(3):
            command = [*isolated, sys.executable, "-c", FIND]
            container = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            outputs.append(containers.enter_context(container).stdout)
        found = {output.readline() for output in outputs if output}
    assert all(line.startswith("1 [") for line in found)
    assert len(found) > 1, "by chance two of them may look in one place, but hardly all"
