"""`python -m perf replicas`: what a rolling restart and a killed replica do to clients of three replicas.

Comes in: a device. Goes out: images lost, and by phase the throughput and each replica's share, over HTTP and gRPC.
"""

from perf.bench import Bench
from perf.findings import Figure, Findings, NotMeasured, Table
from perf.replicas.client_process import Account
from perf.replicas.cluster import SCHEMES, cluster
from perf.replicas.events import Phase, rolling_restart_and_a_kill

TITLE = "Replicas"
WHAT = (
    "three replicas of the embedded checkpoint behind nginx, each on a host of its own, on shared cores: a client that"
    " embeds while each replica in turn is restarted, and while one is killed and started again"
)

_PROTOCOLS = dict(zip(SCHEMES, ("HTTP", "gRPC"), strict=True))
# More than the client has in flight, has read ahead, and gets answered from one look to the next.
_AHEAD = 240
_LEAST_IMAGES = 3000


def replicas(bench: Bench) -> Findings:
    """One client after the other, each with its default of 60 requests in flight.

    Raises:
        NotMeasured: this machine does not allow it, or a client gave up.
    """
    findings = Findings()
    with cluster(str(bench.device)) as three:
        for scheme, protocol in _PROTOCOLS.items():
            print(f"{protocol}: a rolling restart, then a kill; some minutes", flush=True)
            phases, accounts = rolling_restart_and_a_kill(three, [scheme], _AHEAD, _LEAST_IMAGES)
            findings.figures.append(_without_their_embedding(protocol, accounts[scheme]))
            findings.tables.append(_by_phase(protocol, phases))
    return findings


def _without_their_embedding(protocol: str, account: Account) -> Figure:
    if account.exit_code:
        raise NotMeasured(f"the client ended with exit code {account.exit_code}: {account.said}")
    note = f"{account.given} images: {account.lost} lost, {account.wrong} with another's embedding"
    lost = [float(account.lost + account.wrong)]
    return Figure(f"{protocol}, images without their embedding", "exact", lost, at_most=0, note=note)


def _by_phase(protocol: str, phases: list[Phase]) -> Table:
    points = {
        phase.name: {
            "seconds": [phase.seconds],
            "images/s": [phase.images_per_second],
            **{f"share of {number}": [share] for number, share in enumerate(phase.shares, 1)},
        }
        for phase in phases
    }
    return Table(f"{protocol}, phase by phase", "phase", points)
