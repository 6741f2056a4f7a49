"""Three replicas, each on a host of its own, a proxy in front of them on another, and hosts for clients.

Comes in: a device. Goes out: all of it ready, and how many images each replica has answered in all its lives.
"""

import contextlib
import http.client
import re
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from perf.findings import NotMeasured
from perf.hosts import Host, network
from perf.replicas.client_process import ClientProcess, Pictures, draw_pictures
from perf.replicas.proxy import Nginx, find_nginx
from perf.service_under_test import Service

# How clients go through the proxy: HTTP and gRPC.
SCHEMES = ("https", "grpcs")

_REPLICAS = ("replica-1", "replica-2", "replica-3")
_PORT = 8443
_ARGUMENTS = ("--dtype=float32", "--lanes=2", "--cpu-threads=1", "--shutdown-grace-s=1")
_ANSWERED = re.compile(r'^embed_images_total\{code="ok"\} (\S+)', re.MULTILINE)


class Replica:
    """A replica, and the images that it has answered so far, its own canaries among them, in all its lives."""

    def __init__(self, device: str, host: Host) -> None:
        self.service = Service("--device", device, *_ARGUMENTS, host=host)
        self._earlier_lives = 0
        self._this_life = 0
        self._lock = threading.Lock()

    def answered(self) -> int:
        """As of now, or where it does not answer, as of the last time that it was asked."""
        with self._lock, contextlib.suppress(OSError, http.client.HTTPException):
            found = _ANSWERED.search(self.service.metrics())
            answered = int(float(found[1])) if found else 0
            if answered < self._this_life:
                self._earlier_lives += self._this_life
            self._this_life = answered
        return self._earlier_lives + self._this_life


@dataclass(frozen=True)
class Cluster:
    """What `cluster` makes."""

    replicas: Sequence[Replica]
    proxy: Nginx
    clients: Mapping[str, Host]
    pictures: Pictures
    folder: Path

    @contextlib.contextmanager
    def client(self, scheme: str) -> Iterator[ClientProcess]:
        """One through the proxy, on a host of its own: the proxy limits what comes from one address."""
        folder = Path(tempfile.mkdtemp(prefix=f"{scheme}-", dir=self.folder))
        url = f"{scheme}://{self.proxy.host.address}:{self.proxy.port}"
        options = ("--ca-file", str(self.proxy.certificate))
        process = ClientProcess(folder, self.pictures, self.clients[scheme], url, *options)
        try:
            yield process
        finally:
            process.stop()


@contextlib.contextmanager
def cluster(device: str) -> Iterator[Cluster]:
    """All ready inside the block, all gone after it.

    Raises:
        NoNamespaces: this machine does not allow any.
        NotMeasured: nginx is missing, or a replica does not start.
    """
    if not find_nginx():
        raise NotMeasured("nginx is not installed")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="perf-")))
        hosts = stack.enter_context(network("proxy", *SCHEMES, *_REPLICAS))
        replicas = [Replica(device, hosts[name]) for name in _REPLICAS]
        # All at once: each start and each end is mostly waiting.
        threads = stack.enter_context(ThreadPoolExecutor(len(replicas)))
        for replica in replicas:
            replica.service.start()
            stack.callback(threads.submit, replica.service.end)
        for replica in replicas:
            replica.service.wait_until_ready()
        addresses = [replica.service.host.address for replica in replicas]
        over_http, over_grpc = ([f"{address}:{port}" for address in addresses] for port in (8000, 8001))
        proxy = Nginx(folder, over_http, over_grpc, _PORT, hosts["proxy"])
        stack.callback(proxy.stop)
        clients = {scheme: hosts[scheme] for scheme in SCHEMES}
        pictures = draw_pictures(Path(tempfile.mkdtemp(dir=folder)), clients[SCHEMES[0]], f"http://{over_http[0]}")
        yield Cluster(replicas, proxy, clients, pictures, folder)
