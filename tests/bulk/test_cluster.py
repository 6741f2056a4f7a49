"""What Ray is asked for, without Ray."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from service.bulk import cluster
from service.bulk.cluster import Shares, divide
from service.bulk.folder import Folder
from service.bulk.worker import Facts, Site
from service.cores import Cores
from service.errors import StartupFault
from service.process.environment import ENVIRONMENT
from service.settings import Settings
from tests.bulk.lakes import ORIGIN, SETTINGS, dealt, planned, ray_error


@pytest.mark.parametrize(
    ("device", "worker_cpus", "nodes", "shares"),
    [
        ("auto", 0, [{"CPU": 8.0}, {"CPU": 4.0}], Shares(3, 4, 0)),
        ("cpu", 3, [{"CPU": 8.0, "GPU": 1.0}], Shares(2, 3, 0)),
        ("auto", 0, [{"CPU": 64.0, "GPU": 8.0}, {"CPU": 8.0}], Shares(8, 8, 1)),
        ("cuda", 16, [{"CPU": 64.0, "GPU": 8.0}], Shares(4, 16, 1)),
        ("cuda", 16, [{"CPU": 8.0, "GPU": 1.0}], "no machine has 16 cores for a worker and its GPU"),
        ("cuda", 0, [{"CPU": 8.0}], "the cluster has no GPU"),
        ("cpu", 9, [{"CPU": 8.0}], "no machine has 9 cores for a worker"),
    ],
)
def test_a_cluster_is_divided_into_workers_that_it_can_hold(
    monkeypatch: pytest.MonkeyPatch, device: str, worker_cpus: int, nodes: list[dict[str, float]], shares: Shares | str
) -> None:
    gone = {"Alive": False, "Resources": {"CPU": 96.0, "GPU": 8.0}}
    monkeypatch.setattr(ray, "nodes", lambda: [gone, *({"Alive": True, "Resources": node} for node in nodes)])
    if isinstance(shares, Shares):
        assert divide(device, worker_cpus) == shares
    else:
        with pytest.raises(StartupFault, match=shares):
            divide(device, worker_cpus)


def test_workers_find_what_is_set_here_and_the_services_own_for_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, names, utils = dict[str, Any](), list(ENVIRONMENT), ray._private.utils
    monkeypatch.setattr(utils, "set_sigterm_handler", utils.set_sigterm_handler)  # as it was, when this is over
    monkeypatch.setattr(ray, "init", lambda *_, **options: asked.update(options))
    monkeypatch.setattr(ray, "shutdown", asked.clear)
    monkeypatch.setenv(names[0], "as set here")
    for name in names[1:]:
        monkeypatch.delenv(name, raising=False)
    with cluster.cluster("local"):
        assert asked["runtime_env"] == {"env_vars": {**ENVIRONMENT, names[0]: "as set here"}}
        assert asked["num_cpus"] and asked["object_store_memory"]
    assert not asked, "its processes end with the run"
    with cluster.cluster("auto"):  # which has its own, and Ray would refuse ours
        assert asked["num_cpus"] is asked["object_store_memory"] is None


def test_who_tells_what_a_worker_would_be_has_a_workers_share_of_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = dict[str, Any]()

    def remote(**options: object) -> Any:
        asked.update(options)
        return lambda function: SimpleNamespace(remote=function)

    def build(settings: Settings, cores: Cores) -> Any:
        return SimpleNamespace(fingerprint=settings.device, lanes=cores.count)

    monkeypatch.setattr(ray, "remote", remote)
    monkeypatch.setattr(ray, "get", lambda answer: answer)
    monkeypatch.setattr("service.bulk.embedder.Embedder", build)
    assert cluster.ask(SETTINGS, Shares(3, 2, 1)) == Facts(SETTINGS.device, 2)
    assert asked == {"num_cpus": 2, "num_gpus": 1}
    settings = SETTINGS.model_copy(update={"cpu_threads": 5})
    assert cluster.ask(settings, Shares(3, 2, 1)).lanes == 5, "or as many threads as the settings say"

    def fail(_: object) -> None:
        raise ray_error(StartupFault("no checkpoint there"))

    monkeypatch.setattr(ray, "get", fail)
    with pytest.raises(StartupFault, match=r"^no checkpoint there$"):
        cluster.ask(SETTINGS, Shares(3, 2, 1))


def test_each_chunk_is_dealt_by_itself_and_to_no_more_workers_than_there_are_chunks(
    lake: Path, out: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = dict[str, Any]()

    class Items:
        def __init__(self, items: Sequence[dict[str, Any]], override_num_blocks: int) -> None:
            self._items = items
            asked["blocks"] = override_num_blocks

        def map(self, worker: Callable[..., Any], fn_constructor_args: Sequence[Any], **options: Any) -> Any:
            asked.update(options)
            return SimpleNamespace(iter_rows=lambda: map(worker(*fn_constructor_args), self._items))

    context = SimpleNamespace()
    monkeypatch.setattr(ray.data.DataContext, "get_current", lambda: context)
    monkeypatch.setattr(ray.data, "from_items", Items)
    monkeypatch.setattr(cluster, "Worker", lambda *told: lambda item: (told, item))
    site, chunks = Site(Folder.at(str(lake)), out, ORIGIN), planned(lake, out).chunks
    answers: list[Any] = list(cluster.work({chunks[0]: 4, chunks[2]: 1}, True, SETTINGS, Shares(8, 2, 1), 3, site))
    items = [dealt(chunks[number], count, again=True) for number, count in ((0, 4), (2, 1))]
    assert answers == [((SETTINGS, 2, site), item) for item in items]
    pool = asked.pop("compute")
    assert asked == {"blocks": 2, "num_cpus": 2, "num_gpus": 1} and (pool.min_size, pool.max_size) == (2, 2)
    assert (pool.max_tasks_in_flight_per_actor, pool.max_concurrent_calls_per_actor) == (3, 3)
    assert pool.enable_true_multi_threading
    assert context.raise_original_map_exception and context.execution_no_progress_timeout_s < 0
