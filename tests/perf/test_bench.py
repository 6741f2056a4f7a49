"""Sides of a ratio take turns."""

from functools import partial

import torch

from perf.bench import Bench
from perf.load.client import OwnClient


def test_every_second_round_goes_backwards() -> None:
    order: list[str] = []
    with OwnClient(1) as client:  # starts no process before it is asked for something
        bench = Bench(3, 0.0, torch.device("cpu"), client, None, True)
        samples = bench.alternate("turns", {name: partial(order.append, name) for name in "abc"})
    assert "".join(order) == "abccbaabc"
    assert samples == {name: [None] * 3 for name in "abc"}
