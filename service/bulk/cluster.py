"""The job on Ray: chunks of the plan are dealt to workers, one a GPU or one a share of the cores.

Comes in: chunks, and what workers need to know. Goes out: what came of each chunk, as soon as it is done. It must not
know what a worker does.

Ray starts a worker that has died anew, and gives its chunks to the next one: each is embedded at least once.
"""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import ray
import ray.data
from ray.exceptions import RayTaskError

from service.bulk.plan import Chunk
from service.bulk.worker import Facts, Site, Worker, introduce
from service.cores import Cores
from service.errors import StartupFault
from service.process.environment import ENVIRONMENT
from service.settings import Settings

# Nothing but the chunks' names goes through Ray's object store; by itself it would take a third of the memory.
_OBJECT_STORE_BYTES = 2**27
# Workers that die while they start, in a row, before the job is given up.
_DEATHS_AT_START = 3


class Shares(NamedTuple):
    """What the cluster is divided into: so many workers, each with so many cores and GPUs."""

    workers: int
    cpus: int
    gpus: int


@contextlib.contextmanager
def cluster(address: str) -> Iterator[None]:
    """The cluster at `address`, or with `local` one of this machine's own until the end of the block.

    Raises:
        ConnectionError: it does not answer.
    """
    own = address == "local"
    # Ray's own handler of SIGTERM would end the process without a word, and with another exit code.
    ray._private.utils.set_sigterm_handler = lambda _: None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # on what a version to come will do
        ray.init(
            address,
            num_cpus=Cores().count if own else None,
            object_store_memory=_OBJECT_STORE_BYTES if own else None,
            include_dashboard=False if own else None,
            runtime_env={"env_vars": {name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()}},
            logging_level=logging.ERROR,
        )
    try:
        yield
    finally:
        ray.shutdown()


def divide(device: str, worker_cpus: int) -> Shares:
    """The cluster's shares for a `--device`; `worker_cpus` is 0 for a GPU's share of a machine's cores, or for all.

    Raises:
        StartupFault: the cluster has no such device, or too few cores.
    """
    nodes: list[Mapping[str, float]] = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    gpus = [node for node in nodes if node.get("GPU", 0) >= 1] if device != "cpu" else []
    if device.startswith("cuda") and not gpus:
        raise StartupFault("the cluster has no GPU; try --device auto")
    if gpus:
        cpus = worker_cpus or max(1, int(min(node.get("CPU", 1) // node["GPU"] for node in gpus)))
        workers = sum(int(min(node["GPU"], node.get("CPU", 0) // cpus)) for node in gpus)
    else:
        cores = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
        cpus = worker_cpus or min(cores, default=1)
        workers = sum(count // cpus for count in cores)
    if not workers:
        raise StartupFault(f"no machine has {cpus} cores for a worker{' and its GPU' if gpus else ''}")
    return Shares(workers, cpus, 1 if gpus else 0)


def ask(settings: Settings, shares: Shares) -> Facts:
    """What a worker would be, from one that is started for it.

    Raises:
        StartupFault: it cannot be one.
    """
    introduction = ray.remote(num_cpus=shares.cpus, num_gpus=shares.gpus)(introduce)
    try:
        facts: Facts = ray.get(introduction.remote(settings, shares.cpus))
        return facts
    except RayTaskError as error:
        raise StartupFault(str(error.cause)) from error


def work(
    todo: Mapping[Chunk, int], again: bool, settings: Settings, shares: Shares, lanes: int, site: Site
) -> Iterator[dict[str, Any]]:
    """The workers' answers, in any order; `todo` says how many images of each chunk are to be embedded."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1  # a chunk may take long
    context.raise_original_map_exception = True
    context.max_consecutive_actor_init_deaths = _DEATHS_AT_START
    pool = ray.data.ActorPoolStrategy(
        size=min(shares.workers, len(todo)),
        max_tasks_in_flight_per_actor=lanes,
        max_concurrent_calls_per_actor=lanes,
        enable_true_multi_threading=True,
    )
    items = [{**chunk._asdict(), "to_do": count, "again": again} for chunk, count in todo.items()]
    answers = ray.data.from_items(items, override_num_blocks=len(items)).map(
        Worker,  # type: ignore[arg-type]  # a class whose instances are such functions
        fn_constructor_args=(settings, shares.cpus, site),
        compute=pool,
        num_cpus=shares.cpus,
        num_gpus=shares.gpus,
    )
    yield from answers.iter_rows()
