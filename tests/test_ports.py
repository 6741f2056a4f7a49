"""Ports that are still free when something is to listen on them."""

import random
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest

from service.errors import StartupFault
from service.ports import free_ports


def test_they_are_different_and_no_outgoing_connection_can_take_one() -> None:
    """Triton opens the port of its metrics last, and ends where it is taken: a service that was ready is gone."""
    outgoing = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = free_ports(50)
    assert len(set(ports)) == 50 and max(ports) < outgoing


def test_one_that_is_taken_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    (taken, free) = free_ports(2)
    candidates = [taken, free]

    def sample(_: Sequence[int], __: int) -> list[int]:
        return candidates

    monkeypatch.setattr(random, "sample", sample)
    with socket.socket() as occupied:
        occupied.bind(("127.0.0.1", taken))
        occupied.listen()
        assert free_ports(1) == [free]
        candidates.pop()
        with pytest.raises(StartupFault, match="1 free ports between 20000 and 29999"):
            free_ports(1)
