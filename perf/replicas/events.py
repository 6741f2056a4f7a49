"""What befalls the replicas while clients embed, phase by phase, and what it does to throughput, balance and images.

Comes in: a cluster, and clients' schemes. Goes out: each phase's length and images by replica, each client's account.
"""

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from perf.findings import NotMeasured
from perf.replicas.client_process import Account, ClientProcess
from perf.replicas.cluster import Cluster

_LOOK_SECONDS = 0.25
_PATIENCE_SECONDS = 120.0


@dataclass(frozen=True)
class Phase:
    """A phase: its seconds, and the images that each replica answered in it."""

    name: str
    seconds: float
    images: Sequence[int]

    @property
    def images_per_second(self) -> float:
        """Of all replicas."""
        return sum(self.images) / self.seconds

    @property
    def shares(self) -> list[float]:
        """Of each replica in the images."""
        return [images / max(1, sum(self.images)) for images in self.images]


def rolling_restart_and_a_kill(
    cluster: Cluster, schemes: Sequence[str], ahead: int, least_images: int
) -> tuple[list[Phase], dict[str, Account]]:
    """Each replica in turn is ended in order and started again; then one is killed and started again.

    Returns all phases, in order, and the accounts of the clients by scheme.

    Args:
        schemes: of the clients, which embed at the same time.
        ahead: images that each client was given and that are not answered yet; under 60, the clients' own limit of
            requests in flight, the load is lighter.
        least_images: that are answered before, between and after the two.

    Raises:
        NotMeasured: a replica did not end in order, or a client ended early.
    """
    with contextlib.ExitStack() as stack:
        clients = {scheme: stack.enter_context(cluster.client(scheme)) for scheme in schemes}
        phases = _Phases(cluster, list(clients.values()))
        with _fed(cluster, list(clients.values()), ahead):
            with phases.phase("all three"):
                phases.wait_for(least_images)
            with phases.phase("rolling restart"):
                for replica in cluster.replicas:
                    if exit_code := replica.service.end():
                        raise NotMeasured(f"a replica ended with exit code {exit_code}")
                    replica.service.start()
                    replica.service.wait_until_ready()
            with phases.phase("all three again"):
                phases.wait_for(least_images)
            with phases.phase("one killed"):
                cluster.replicas[0].service.kill()
                cluster.replicas[0].service.start()
                cluster.replicas[0].service.wait_until_ready()
            with phases.phase("all three at the end"):
                phases.wait_for(least_images)
        return phases.all, {scheme: client.finish() for scheme, client in clients.items()}


class _Phases:
    """Counts what is answered from phase to phase."""

    def __init__(self, cluster: Cluster, clients: Sequence[ClientProcess]) -> None:
        self.all: list[Phase] = []
        self._cluster = cluster
        self._clients = clients

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """The block is one."""
        before, started = self._answered(), time.monotonic()
        yield
        images = [after - count for after, count in zip(self._answered(), before, strict=True)]
        self.all.append(Phase(name, time.monotonic() - started, images))

    def wait_for(self, images: int) -> None:
        """Until so many more are answered.

        Raises:
            NotMeasured: they are not, or a client has ended.
        """
        goal, deadline = sum(self._answered()) + images, time.monotonic() + _PATIENCE_SECONDS
        while sum(self._answered()) < goal:
            for client in self._clients:
                client.check_alive()
            if time.monotonic() > deadline:
                raise NotMeasured(f"{images} images were not answered in {_PATIENCE_SECONDS:g} s")
            time.sleep(_LOOK_SECONDS)

    def _answered(self) -> list[int]:
        return [replica.answered() for replica in self._cluster.replicas]


@contextlib.contextmanager
def _fed(cluster: Cluster, clients: Sequence[ClientProcess], ahead: int) -> Iterator[None]:
    """Inside the block the clients are given as many images as are answered, and `ahead` more each."""
    over = threading.Event()
    before = sum(replica.answered() for replica in cluster.replicas)

    def feed() -> None:
        with contextlib.suppress(BrokenPipeError):  # a client has ended, which is told where it is waited for
            while not over.wait(_LOOK_SECONDS):
                answered = sum(replica.answered() for replica in cluster.replicas) - before
                for client in clients:
                    client.give(max(0, answered // len(clients) + ahead - client.given))

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
