"""Sides of a ratio take turns; what a load takes of the cores is told, also where it is not discounted."""

from functools import partial

import torch

from perf import machine
from perf.bench import Bench
from perf.load.client import LoadResult, OwnClient
from perf.rows.end_to_end import _overhead_figure


def test_every_second_round_goes_backwards() -> None:
    order: list[str] = []
    with OwnClient(1) as client:  # starts no process before it is asked for something
        bench = Bench(3, 0.0, torch.device("cpu"), client, None, True)
        samples = bench.alternate("turns", {name: partial(order.append, name) for name in "abc"})
    assert "".join(order) == "abccbaabc"
    assert samples == {name: [None] * 3 for name in "abc"}


def test_a_gpu_shares_no_cores_with_the_load() -> None:
    with OwnClient(1) as client:
        cores = Bench(3, 0.0, torch.device("cuda:0"), client, None, True).shared_cores
    load = LoadResult(images_per_second=10.0, p50_ms=1.0, p99_ms=1.0, errors={}, client_cores=1.5)
    figure = _overhead_figure("gRPC", [load], [8.0], cores)
    assert figure.samples == [10.0]
    assert figure.note.endswith(f"client: 1.50 of {machine.cores()} cores")
