"""Three replicas behind the documented proxy: whatever befalls replicas, no image of a client is lost."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from perf.hosts import Host, NoNamespaces
from perf.replicas.client_process import ClientProcess, Pictures
from perf.replicas.cluster import SCHEMES, Cluster, cluster
from perf.replicas.events import rolling_restart_and_a_kill
from perf.replicas.proxy import find_nginx
from tests.client.fake_service import fake_service

# A light load, beside which a replica does not take long to start.
AHEAD = 16
IMAGES = 200


@pytest.fixture
def three() -> Iterator[Cluster]:
    """Ready replicas, where this machine lets us have them."""
    if not find_nginx():
        pytest.skip("nginx is not installed")
    try:
        with cluster("cpu") as three:
            yield three
    except NoNamespaces as reason:
        pytest.skip(f"no network namespaces: {reason}")


def test_a_rolling_restart_and_a_killed_replica_lose_no_image_over_http_and_grpc(three: Cluster) -> None:
    phases, accounts = rolling_restart_and_a_kill(three, SCHEMES, AHEAD, IMAGES)
    for account in accounts.values():
        assert (account.exit_code, account.lost, account.wrong) == (0, 0, 0), account.said
        assert account.given > IMAGES
    shares = {phase.name: phase.shares for phase in phases}
    assert all(0.2 < share < 0.5 for share in shares["all three"])
    assert all(share > 0.1 for share in shares["rolling restart"])
    assert shares["one killed"][0] < 0.2


def test_a_lost_image_and_the_embedding_of_another_are_found(tmp_path: Path) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    pictures = Pictures([tmp_path / f"{number}.jpg" for number in range(3)], np.ones((3, 4), np.float32))
    pictures.embeddings[1] = [1, 2, 3, 4]
    for number, path in enumerate(pictures.paths):
        path.write_text(f"{'400' if number == 2 else '200'} #{number + 1}")
    with fake_service() as fake:
        client = ClientProcess(folder, pictures, Host(), fake.url)
        client.give(7)
        account = client.finish()
    assert (account.exit_code, account.given, account.lost, account.wrong) == (1, 7, 2, 2)
