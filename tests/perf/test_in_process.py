"""The other side of the ratios is one encoder, however many threads use it."""

import threading

import pytest
import torch

from perf import images
from perf.in_process import DEMO, Components, bare_loops
from service.cores import Cores
from service.model.encoder import Encoder


def test_threads_share_an_encoder_that_none_of_them_has_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """From Python 3.12 on each of them would make its own, and CUDA's recordings suffer none beside them."""
    makers, make = list[int](), Components._encoder

    def watched(self: Components, cores: Cores) -> Encoder:
        makers.append(threading.get_ident())
        return make(self, cores)

    monkeypatch.setattr(Components, "_encoder", watched)
    loops = bare_loops(Components(DEMO, torch.device("cpu")), images.shipped(), 2, 0.0)
    assert loops["threads that do all for their own batch"]() > 0
    assert makers == [threading.get_ident()]
