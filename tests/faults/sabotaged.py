"""`python -m service` with an encoder or decoder that fails on demand: in the way that the file SABOTAGE then says.

What it allows a device and how often it sends a canary does not depend on how busy the machine was when it started: to
it an image takes so long as IMAGE_SECONDS says.
"""

import contextlib
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch

from service.__main__ import main
from service.model.encoder import Encoder
from service.preprocessing.decode import DecodedImage, Decoder
from service.pytriton_compat.triton import SupervisedTriton
from tests.limits import full_pipe

SABOTAGE = Path(os.environ["SABOTAGE"])
STILL = f"{SABOTAGE} of stubs"
FROZEN = f"{SABOTAGE} of an answer"
# At the end of a stub's model: it takes batches and hands none on, while its pulse and the other model's stub go on; or
# it is stopped when it has answered one, before Triton's code has handed the answers over.
STANDS_STILL = f"""
started, execute = time.time(), TritonPythonModel.execute
still, frozen = Path({STILL!r}), Path({FROZEN!r})

def stand_still(self, requests):
    while still.exists() and still.stat().st_mtime > started and still.read_text() in self._lane.getpeername():
        time.sleep(0.05)
    responses = execute(self, requests)
    with contextlib.suppress(FileNotFoundError):
        frozen.unlink()
        os.kill(os.getpid(), signal.SIGSTOP)
    return responses

TritonPythonModel.execute = stand_still
"""
IMAGE_SECONDS = float(os.environ.get("IMAGE_SECONDS", "0.01"))
bind = SupervisedTriton.bind
warm_up = Encoder.warm_up
compute = Encoder._run_batch
decode = Decoder.decode


def _sabotage() -> str:
    with contextlib.suppress(FileNotFoundError):
        return SABOTAGE.read_text()
    return ""


def sabotaged_bind(self: SupervisedTriton, model: str, *args: Any, **kwargs: Any) -> None:
    """Stubs of `embed_image` that stand still as long as there is a file with a part of their lane's name in it.

    If it came after them, that is: those that take their place go on.
    """
    bind(self, model, *args, **kwargs)
    if model == "embed_image":
        with (self._server.model_store / model / "1" / "model.py").open("a") as file:
            file.write(STANDS_STILL)


def warm_up_at_a_known_speed(self: Encoder, max_batch_size: int) -> None:
    """The encoder's own, whatever else the machine does meanwhile."""
    warm_up(self, max_batch_size)
    self.image_seconds = IMAGE_SECONDS


def sabotaged_decode(self: Decoder, image: bytes | memoryview) -> DecodedImage:
    """The image, until the file is there: then no thread but a lane's own comes back."""
    while _sabotage() == "hangs in a helper's hands" and threading.current_thread().name.startswith("decode"):
        time.sleep(0.05)
    return decode(self, image)


def _hold_stderr() -> None:
    """Have it block whoever writes one more byte."""
    _, full = full_pipe()
    os.dup2(full, sys.stderr.fileno())


def sabotaged(self: Encoder, images: torch.Tensor) -> torch.Tensor:
    """The batch's embeddings, until the file is there."""
    while (how := _sabotage()) == "hangs":
        time.sleep(0.05)
    if how == "has a log that nobody reads":
        _hold_stderr()
        SABOTAGE.unlink()
    if how == "raises":
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    if how == "is out of memory":
        raise torch.OutOfMemoryError("CUDA out of memory")
    embeddings = compute(self, images)
    if how == "is wrong":
        return embeddings.flip(1)
    return embeddings * float("nan") if how == "computes no numbers" else embeddings


if __name__ == "__main__":
    SupervisedTriton.bind = sabotaged_bind  # type: ignore[method-assign]
    Encoder._run_batch = sabotaged  # type: ignore[method-assign]
    Encoder.warm_up = warm_up_at_a_known_speed  # type: ignore[method-assign]
    Decoder.decode = sabotaged_decode  # type: ignore[method-assign]
    sys.exit(main())
