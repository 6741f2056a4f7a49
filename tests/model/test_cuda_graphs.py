"""Without a GPU: where batches are recorded. What recordings compute, tests/gpu tell."""

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from service.model.cuda_graphs import CudaGraphs


def test_batches_are_recorded_in_memory_that_they_share_and_on_a_stream_of_their_own_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The stream that `torch.cuda.graph` takes by itself is of the first device of the process."""
    recorded: list[Any] = []

    @contextlib.contextmanager
    def graph(*_: object, pool: object, stream: Any) -> Iterator[None]:
        recorded.append((pool, stream.device))
        yield

    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", iter("pool").__next__)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: SimpleNamespace(device=device))
    image = torch.zeros(3)
    CudaGraphs(lambda batch: batch, 4, image)
    assert recorded == [("p", image.device)] * 4
