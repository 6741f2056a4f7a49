"""Without a GPU: the encoder's way over CUDA, on a device that computes nothing before somebody waits for it."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.nn import functional
from transformers import SiglipVisionConfig, SiglipVisionModel

from service.cores import Cores
from service.errors import StartupFault
from service.metrics import Metrics
from service.model import encoder as encoder_room
from service.model.encoder import Encoder
from service.model.vision_tower import VisionTower
from tests.model.lazy_cuda import RESERVED_BYTES, Stream, lazy_cuda

__all__ = ["lazy_cuda"]

pytestmark = pytest.mark.usefixtures("lazy_cuda")

MOST_AT_ONCE = 4
SIZES = (1, 4, 3, 9, 2, 1, 6)

Pixels = npt.NDArray[np.uint8]
Vectors = npt.NDArray[np.float32]


def _model() -> Any:
    shape: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = SiglipVisionConfig(image_size=32, patch_size=16, num_attention_heads=4, **shape)
        return SiglipVisionModel(config).eval()


@pytest.fixture
def cold(monkeypatch: pytest.MonkeyPatch) -> Encoder:
    """It makes pixel values from -1 to 1 of bytes."""
    monkeypatch.setattr(encoder_room, "_MOST_AT_ONCE_ON_CUDA", MOST_AT_ONCE)
    scale, offset = (1 / 127.5,) * 3, (1.0,) * 3
    return Encoder(_model(), torch.device("cuda:0"), torch.float32, scale, offset, Cores(2), Metrics())


@pytest.fixture
def encoder(cold: Encoder) -> Encoder:
    """Warmed up."""
    cold.warm_up(max(SIZES))
    assert cold.lanes == 2 and cold.image_seconds > 0
    return cold


def _values(pixels: Pixels) -> Vectors:
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2) / np.float32(127.5) - np.float32(1))


def _expected(batches: Sequence[Pixels]) -> list[Vectors]:
    model = _model()
    with torch.inference_mode():
        return [model(pixel_values=torch.from_numpy(_values(batch))).pooler_output.numpy() for batch in batches]


def test_many_callers_batches_have_the_references_embeddings(encoder: Encoder) -> None:
    """Recorded and not, in pieces and in one; the pixels' memory is used again as soon as there is an answer."""
    random = np.random.default_rng(0)
    batches = [random.integers(0, 256, (size, 32, 32, 3), np.uint8) for size in SIZES * 3]

    def embed(batch: Pixels) -> tuple[Vectors, Vectors]:
        room = encoder.room_for(len(batch))
        room[...] = batch
        recorded = encoder.encode(room)
        room[...] = 0
        return recorded, encoder.encode_pixel_values(_values(batch))

    with ThreadPoolExecutor(8) as callers:
        found = list(callers.map(embed, batches))
    for pair, expected in zip(found, _expected(batches), strict=True):
        for embeddings in pair:
            np.testing.assert_allclose(embeddings, expected, atol=1e-5)


def test_kernels_are_launched_by_the_thread_that_was_warmed_up(cold: Encoder) -> None:
    """Callers that did so at the same time would write over each other's images: recordings share their memory.

    What libraries plan for a number of images is the thread's own, too, and may not be planned while it is recorded.
    """
    launches, tower = list[tuple[int, int]](), cold._tower

    class Watched:
        def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
            launches.append((threading.get_ident(), len(pixel_values)))
            return tower(pixel_values)

    cold._tower = cast(VisionTower, Watched())
    cold.warm_up(max(SIZES))
    cold.encode_pixel_values(np.zeros((2, 3, 32, 32), np.float32))
    launchers, sizes = zip(*launches, strict=True)
    assert set(launchers) == {cold._launcher.submit(threading.get_ident).result()}
    # Each is run once and then recorded; what is not recorded comes after.
    assert sizes == (4, 4, 3, 3, 2, 2, 1, 1, MOST_AT_ONCE, 2)


def test_only_who_wants_embeddings_waits_for_kernels(
    encoder: Encoder, lazy_cuda: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else uploads would wait for other callers' kernels, and the device for the next caller's."""
    order, launch = list[str](), encoder._launch

    def watched(images: torch.Tensor) -> Any:
        order.append("uploaded")
        launched = launch(images)
        order.append("launched")
        return launched

    monkeypatch.setattr(encoder, "_launch", watched)
    lazy_cuda.work.append(lambda: order.append("computed"))
    encoder.encode(encoder.room_for(3))
    assert order == ["uploaded", "launched", "computed"]


def test_the_log_tells_what_the_largest_batch_takes(cold: Encoder, caplog: pytest.LogCaptureFixture) -> None:
    """Of the device's memory, not of what tensors take of it: recordings keep theirs."""
    caplog.set_level("INFO")
    cold.warm_up(max(SIZES))
    assert f"cuda:0: batches of up to 9 take {RESERVED_BYTES // 2**20} MiB, weights included" in caplog.messages


def test_a_device_that_has_failed_is_told_by_the_batches_that_it_cannot_compute(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two in a row end the process; what fails elsewhere nobody counts. Such a device gives no memory, either."""
    empty, refused = torch.empty, list[torch.dtype | None]()

    def without_pinned_memory(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        if pin_memory:
            refused.append(kwargs.get("dtype"))
            raise RuntimeError("CUDA error: device-side assert triggered")
        return empty(*args, **kwargs)

    monkeypatch.setattr(torch, "empty", without_pinned_memory)
    for failures in (1, 2):
        with pytest.raises(RuntimeError, match="device-side assert"):
            encoder.encode(encoder.room_for(2))
        assert encoder.failures_in_a_row == failures
        assert refused == [torch.uint8, None] * failures, "of pixels, and of embeddings"


SPOILS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "of the others in the batch": lambda embeddings: embeddings.roll(1, 0),
    "of no attention": torch.zeros_like,
    "no numbers": lambda embeddings: embeddings * torch.nan,
    "of an image alone": lambda embeddings: embeddings if len(embeddings) > 1 else torch.zeros_like(embeddings),
}


@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS)
def test_a_device_that_computes_wrong_numbers_from_the_start_is_told(
    cold: Encoder, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """As some kernels do on some kinds of GPU, or for some sizes of a batch."""
    attend = functional.scaled_dot_product_attention
    monkeypatch.setattr(functional, "scaled_dot_product_attention", lambda *tensors: spoil(attend(*tensors)))
    with pytest.raises(StartupFault, match=r"^cuda:0 computes other embeddings than it should"):
        cold.warm_up(max(SIZES))
