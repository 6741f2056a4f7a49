"""`python -m service` with an encoder that fails on demand: in the way that the file SABOTAGE then says."""

import os
import sys
import time
from pathlib import Path

import torch

from service.__main__ import main
from service.encoder import Encoder

SABOTAGE = Path(os.environ["SABOTAGE"])
compute = Encoder._run_batch


def sabotaged(self: Encoder, images: torch.Tensor) -> torch.Tensor:
    """The batch's embeddings, until the file is there."""
    while (how := SABOTAGE.read_text() if SABOTAGE.exists() else "") == "hangs":
        time.sleep(0.05)
    if how == "raises":
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    if how == "is out of memory":
        raise torch.OutOfMemoryError("CUDA out of memory")
    embeddings = compute(self, images)
    if how == "is wrong":
        return embeddings.flip(1)
    return embeddings * float("nan") if how == "computes no numbers" else embeddings


if __name__ == "__main__":
    Encoder._run_batch = sabotaged  # type: ignore[method-assign]
    sys.exit(main())
