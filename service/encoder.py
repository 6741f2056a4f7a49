"""The checkpoint on its device: uint8 pixels -> embeddings.

Comes in: uint8 pixels `[N, S, S, 3]`, or ready float32 pixel values `[N, 3, S, S]`. Goes out: float32 embeddings
`[N, D]`, the model's `pooler_output`. It holds the only torch code; it must not know of images, requests or batching.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoConfig, SiglipVisionConfig, SiglipVisionModel
from transformers.utils import logging as transformers_logging

from service.errors import StartupFault

logger = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# A batch on a CPU teaches it nothing after the first few, and a large model may need minutes for a full one.
_CPU_WARM_UP_SECONDS = 5.0


class Encoder:
    """One vision model on one device. Calls from several threads take turns.

    Attributes:
        device: the torch device, e.g. `cpu` or `cuda:0`.
        dtype: the dtype that the model computes in; inputs and outputs are float32 all the same.
        image_size: S, the side in pixels of the square that the model reads.
        dimension: D, the length of an embedding.
    """

    def __init__(
        self,
        model: SiglipVisionModel,
        device: torch.device,
        dtype: torch.dtype,
        scale: Sequence[float],
        offset: Sequence[float],
    ) -> None:
        self.device = device
        self.dtype = dtype
        self.image_size = int(model.config.image_size)
        self.dimension = int(model.config.hidden_size)
        self._model = model.to(device=device, dtype=dtype).eval()
        self._scale = torch.tensor(scale, dtype=torch.float32, device=device).view(1, 3, 1, 1)
        self._offset = torch.tensor(offset, dtype=torch.float32, device=device).view(1, 3, 1, 1)
        self._turn = threading.Lock()

    def encode(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """uint8 RGB pixels `[N, S, S, 3]` -> float32 embeddings `[N, D]`, row by row in the same order."""
        return self._run(lambda: self._normalize(torch.from_numpy(pixels).to(self.device)))

    def encode_pixel_values(self, pixel_values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """float32 pixel values `[N, 3, S, S]`, rescaled and normalised already -> float32 embeddings `[N, D]`."""
        return self._run(lambda: torch.from_numpy(pixel_values).to(self.device))

    def warm_up(self, max_batch_size: int) -> None:
        """Run batches of 1, 2, 4, ... up to `max_batch_size`, so that no client pays for a first time.

        On CUDA this also proves that the largest batch fits into memory; on a CPU it ends early when it gets long.

        Raises:
            StartupFault: the device runs out of memory.
        """
        started = time.monotonic()
        for size in _doubling(max_batch_size):
            try:
                self.encode(np.zeros((size, self.image_size, self.image_size, 3), dtype=np.uint8))
            except torch.OutOfMemoryError as error:
                raise StartupFault(
                    f"a batch of {size} does not fit into the memory of {self.device}; lower --max-batch-size"
                ) from error
            if self.device.type == "cpu" and time.monotonic() - started > _CPU_WARM_UP_SECONDS:
                break
        logger.info("warmed up with batches of 1 to %d in %.1f s", size, time.monotonic() - started)

    def _normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.permute(0, 3, 1, 2).to(torch.float32).mul(self._scale).sub_(self._offset)

    def _run(self, pixel_values: Callable[[], torch.Tensor]) -> npt.NDArray[np.float32]:
        with self._turn, torch.inference_mode():
            output = self._model(pixel_values=pixel_values().to(self.dtype))
            embeddings: npt.NDArray[np.float32] = output.pooler_output.float().cpu().numpy()
            return embeddings


def load_model(checkpoint: str, revision: str | None, random_weights: bool) -> SiglipVisionModel:
    """The vision tower of a SigLIP checkpoint (a hub id or a folder), in float32 on the CPU.

    Raises:
        StartupFault: the checkpoint cannot be found or read, is no SigLIP, or lacks weights. What the loaders raise
            comes from half a dozen packages, so any exception of theirs counts.
    """
    # It reports at length that the text tower's weights are left over, which is on purpose.
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    config = _load_vision_config(checkpoint, revision)
    if random_weights:
        logger.warning("RANDOM WEIGHTS: the embeddings of this service mean nothing; use it for load tests only")
        return _random_model(checkpoint, config)
    try:
        model, report = SiglipVisionModel.from_pretrained(
            checkpoint, config=config, revision=revision, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:
        raise StartupFault(
            f"checkpoint {checkpoint!r} has no readable weights ({_first_line(error)});"
            " to run a bare config.json for a load test, add --random-weights true"
        ) from error
    # transformers fills what a file lacks with random numbers and goes on.
    if report["missing_keys"]:
        raise StartupFault(f"checkpoint {checkpoint!r} lacks weights: {', '.join(sorted(report['missing_keys'])[:3])}")
    return model


def resolve_devices(names: str) -> list[torch.device]:
    """`auto`, `cpu`, `cuda` or `cuda:0,cuda:1` -> devices; `auto` is the first CUDA device, else the CPU.

    Raises:
        StartupFault: a device that is not there.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if names == "auto":
        names = "cuda:0" if count else "cpu"
    devices = [torch.device("cuda:0" if name == "cuda" else name) for name in names.split(",")]
    for device in devices:
        if device.type == "cuda" and (device.index or 0) >= count:
            raise StartupFault(f"device {device} is not there: torch sees {count} CUDA device(s); try --device auto")
    return devices


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto`, `float32`, `bfloat16` or `float16` -> the dtype to compute in.

    `auto` is bfloat16 where the device has units for it (else float16 on CUDA, float32 on a CPU, where emulating
    bfloat16 is slower than float32).
    """
    if name != "auto":
        return _DTYPES[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    units = torch.cpu.get_capabilities()
    return torch.bfloat16 if units.get("avx512_bf16") or units.get("amx_bf16") else torch.float32


def _load_vision_config(checkpoint: str, revision: str | None) -> SiglipVisionConfig:
    if checkpoint.startswith(("/", ".", "~")) and not Path(checkpoint).is_dir():
        raise StartupFault(f"checkpoint {checkpoint!r} is no folder")
    try:
        config = AutoConfig.from_pretrained(checkpoint, revision=revision)
    except Exception as error:
        raise StartupFault(f"checkpoint {checkpoint!r} cannot be read: {_first_line(error)}") from error
    vision_config = getattr(config, "vision_config", config)
    if not isinstance(vision_config, SiglipVisionConfig):
        raise StartupFault(f"checkpoint {checkpoint!r} is no SigLIP: its model type is {config.model_type!r}")
    if not getattr(vision_config, "vision_use_head", True):
        raise StartupFault(f"checkpoint {checkpoint!r} has no pooling head, so it gives no embeddings")
    return vision_config


def _random_model(checkpoint: str, config: SiglipVisionConfig) -> SiglipVisionModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            return SiglipVisionModel(config)
        except Exception as error:
            raise StartupFault(f"checkpoint {checkpoint!r} describes no model: {_first_line(error)}") from error


def _doubling(last: int) -> Iterator[int]:
    size = 1
    while size < last:
        yield size
        size *= 2
    yield last


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0][:300]
