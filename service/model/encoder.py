"""The checkpoint on its device: uint8 pixels -> embeddings.

Comes in: uint8 pixels `[N, S, S, 3]`, or ready float32 pixel values `[N, 3, S, S]`. Goes out: float32 embeddings
`[N, D]`, the model's `pooler_output`. It must not know of images, requests or batching.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoConfig, SiglipVisionConfig, SiglipVisionModel
from transformers.utils import find_adapter_config_file
from transformers.utils import logging as transformers_logging

from service.cores import Cores
from service.errors import StartupFault
from service.metrics import Metrics
from service.model.cuda_graphs import CudaGraphs
from service.model.vision_tower import VisionTower

logger = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# A lane costs a process of Triton's; with more cores than this, each lane's share of them gets larger.
_MAX_CPU_LANES = 8
# Waking a thread for every operator takes longer than a smaller share of the work than this.
_LEAST_OPERATIONS_A_THREAD = 5e8
# A larger batch gains nothing. On a CPU, oneDNN makes and keeps kernels for each number of images and of threads that
# it meets: with the embedded checkpoint 5 MB each. On CUDA, each number of images is recorded.
_MOST_AT_ONCE_ON_CPU = 16
_MOST_AT_ONCE_ON_CUDA = 64
# Activations of more tokens take tens of MB each, which glibc gives back to the system as soon as they are free. Then
# memory is cleared for each operator anew: a tenth of all the time, with so400m a fifth.
_MOST_TOKENS_AT_ONCE_ON_CPU = 2200
# Rounding to half precision leaves more of a likeness, a fault of a library or a device less.
_LEAST_LIKENESS = 0.99
# A batch on a CPU teaches it nothing after the first few, and a large model may need minutes for a full one.
_CPU_WARM_UP_SECONDS = 5.0


class Encoder:
    """One vision model on one device. On CUDA, calls from several threads take turns; on a CPU they share the cores.

    Attributes:
        device: the torch device, e.g. `cpu` or `cuda:0`.
        dtype: the dtype that the model computes in; inputs and outputs are float32 all the same.
        image_size: S, the side in pixels of the square that the model reads.
        dimension: D, the length of an embedding.
        lanes: the number of batches in the works at a time that keeps the device busy.
        failures_in_a_row: batches that could not be computed since the last one that could.
        image_seconds: what an image takes in the largest batch of the warm-up.
    """

    def __init__(
        self,
        model: SiglipVisionModel,
        device: torch.device,
        dtype: torch.dtype,
        scale: Sequence[float],
        offset: Sequence[float],
        cores: Cores,
        metrics: Metrics,
    ) -> None:
        self.device = device
        self.dtype = dtype
        self.image_size = int(model.config.image_size)
        self.dimension = int(model.config.hidden_size)
        self._tower = VisionTower(model, device, dtype)
        tokens = (self.image_size // model.config.patch_size) ** 2
        self._operations = 2 * tokens * sum(weight.numel() for weight in model.parameters())
        self._scale = torch.tensor(scale, dtype=torch.float32, device=device)
        self._offset = torch.tensor(offset, dtype=torch.float32, device=device)
        self._on_cuda = device.type == "cuda"
        self._most_at_once = _MOST_AT_ONCE_ON_CUDA if self._on_cuda else _most_at_once_on_cpu(tokens)
        # One batch decodes while another encodes. On a CPU one batch a core, and one more on its way.
        self.lanes = 2 if self._on_cuda else min(cores.count + 1, _MAX_CPU_LANES)
        self.failures_in_a_row = 0
        self.image_seconds = 0.0
        self._cores = cores
        self._metrics = metrics
        if self._on_cuda:
            self._upload = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            # One thread launches the kernels of all callers: libraries' handles and workspaces belong to a thread, and
            # so the warm-up makes them for every client.
            self._launcher = ThreadPoolExecutor(1, thread_name_prefix="launch")
            self._recorded: Callable[[torch.Tensor], torch.Tensor] = self._forward
            self._shades, self._known = self._expect(model)

    def room_for(self, count: int) -> npt.NDArray[np.uint8]:
        """An array for the pixels of `count` images, `[count, S, S, 3]`, where the device reads them fastest."""
        shape = (count, self.image_size, self.image_size, 3)
        try:
            pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=self._on_cuda)
        except RuntimeError:  # of a device that has failed; `encode` is where that is told and counted
            pixels = torch.empty(shape, dtype=torch.uint8)
        return pixels.numpy()

    def encode(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """uint8 RGB pixels `[N, S, S, 3]` -> float32 embeddings `[N, D]`, row by row in the same order."""
        return self._run(torch.from_numpy(pixels))

    def encode_pixel_values(self, pixel_values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """float32 pixel values `[N, 3, S, S]`, rescaled and normalised already -> float32 embeddings `[N, D]`."""
        return self._run(torch.from_numpy(pixel_values))

    def warm_up(self, max_batch_size: int) -> None:
        """Run batches of all kinds up to `max_batch_size`, so that no client pays for a first time.

        On CUDA this records them, and proves that the largest fits into memory and that the numbers are right; on a CPU
        it ends early when it gets long.

        Raises:
            StartupFault: the device runs out of memory, or computes something else.
        """
        started = time.monotonic()
        try:
            size = self._warm_up_cuda(max_batch_size) if self._on_cuda else self._warm_up_cpu(max_batch_size)
        except torch.OutOfMemoryError as error:
            raise StartupFault(
                f"batches of {max_batch_size} do not fit into the memory of {self.device}; lower --max-batch-size"
            ) from error
        logger.info("warmed up with batches of 1 to %d in %.1f s", size, time.monotonic() - started)

    def _warm_up_cpu(self, max_batch_size: int) -> int:
        deadline = time.monotonic() + _CPU_WARM_UP_SECONDS
        # The very first also loads libraries and kernels, which is nothing to judge later ones by.
        for size in chain((1,), _doubling(max_batch_size)):
            self._time_batch(size)
            if time.monotonic() > deadline:
                return size
        self._make_kernels(min(max_batch_size, self._most_at_once), deadline)
        return size

    def _make_kernels(self, most: int, deadline: float) -> None:
        """Run each number of images up to `most` on each share of the cores: oneDNN makes kernels for every one.

        Made only when they are needed, they cost a client time, and the process grows for hours.
        """
        for threads, size in product(self._cores.shares(self.lanes), range(1, most + 1)):
            if time.monotonic() > deadline:
                return
            self._run_in_threads([self._blank(size)], threads)

    def _warm_up_cuda(self, max_batch_size: int) -> int:
        most = min(max_batch_size, self._most_at_once)
        self._launcher.submit(self._record, most).result()
        self._prove(most)
        # Prepared pixels are not recorded: their batches take memory beside the recordings'.
        self._run_batch(torch.zeros((most, 3, self.image_size, self.image_size)))
        self._time_batch(max_batch_size)
        peak = torch.cuda.max_memory_allocated(self.device) / 2**20
        logger.info("%s: a batch of %d takes %.0f MiB at its peak", self.device, max_batch_size, peak)
        return max_batch_size

    @torch.inference_mode()
    def _record(self, most: int) -> None:
        with torch.cuda.device(self.device):
            image = torch.zeros((self.image_size, self.image_size, 3), dtype=torch.uint8, device=self.device)
            self._recorded = CudaGraphs(self._forward, most, image)

    @torch.inference_mode()
    def _expect(self, model: SiglipVisionModel) -> tuple[torch.Tensor, torch.Tensor]:
        """An image of all shades of gray (uint8 `[S, S, 3]`), and what the model makes of it on the CPU (`[1, D]`)."""
        side = self.image_size
        shades = torch.linspace(0, 255, side).to(torch.uint8).view(1, -1, 1).expand(side, -1, 3)
        pixel_values = (shades * self._scale.cpu() - self._offset.cpu()).permute(2, 0, 1)
        return shades, model(pixel_values=pixel_values[None]).pooler_output

    def _prove(self, most: int) -> None:
        """Compute the known image, as the last of a batch.

        Kernels are chosen by the kind of GPU, and those of one that nobody has tried may be at fault: then all that
        watches the running service would compare wrong embeddings with wrong ones.
        """
        images = self._blank(most)
        images[-1] = self._shades
        found = self._run_batch(images)[-1:]
        if not torch.cosine_similarity(found, self._known).item() >= _LEAST_LIKENESS:
            raise StartupFault(f"{self.device} computes other embeddings than it should; try another --dtype")

    def _time_batch(self, size: int) -> None:
        started = time.monotonic()
        self._run_batch(self._blank(size))
        self.image_seconds = (time.monotonic() - started) / size

    def _blank(self, size: int) -> torch.Tensor:
        return torch.from_numpy(self.room_for(size)).zero_()

    def held_bytes(self) -> int:
        """Bytes of a CUDA device's memory that nobody else can have: tensors, recordings, and what waits for more."""
        return torch.cuda.memory_reserved(self.device)

    def _run(self, images: torch.Tensor) -> npt.NDArray[np.float32]:
        self._metrics.encoded(len(images))
        try:
            with self._metrics.stage("encode"):
                embeddings: npt.NDArray[np.float32] = self._run_or_halve(images).numpy()
        except BaseException:
            self.failures_in_a_row += 1
            self._metrics.encoder_failed()
            raise
        self.failures_in_a_row = 0
        return embeddings

    def _run_or_halve(self, images: torch.Tensor) -> torch.Tensor:
        """The whole batch, or one half after the other where something else has taken the device's memory."""
        try:
            return self._run_batch(images)
        except torch.OutOfMemoryError:
            if len(images) == 1:
                raise
            logger.warning("a batch of %d does not fit into the memory of %s; trying halves", len(images), self.device)
        torch.cuda.empty_cache()
        return torch.cat([self._run_batch(half) for half in images.chunk(2)])

    @torch.inference_mode()
    def _run_batch(self, images: torch.Tensor) -> torch.Tensor:
        pieces = _pieces(images, self._most_at_once)
        if self._on_cuda:
            return torch.cat([self._run_on_cuda(piece) for piece in pieces])
        with self._cores.share() as threads:
            return self._run_in_threads(pieces, threads)

    @torch.inference_mode()
    def _run_in_threads(self, pieces: Sequence[torch.Tensor], most: int) -> torch.Tensor:
        """One piece after the other, each operator in at most so many threads."""
        torch.get_num_threads()  # or a thread's first operator would take the number that another has set last
        worthwhile = 1 + int(len(pieces[0]) * self._operations / _LEAST_OPERATIONS_A_THREAD)
        torch.set_num_threads(min(most, worthwhile))  # of the calling thread alone
        return torch.cat([self._forward(piece) for piece in pieces])

    def _run_on_cuda(self, images: torch.Tensor) -> torch.Tensor:
        """Upload and download overlap the work of other callers; only the kernels are launched in turns."""
        with torch.cuda.device(self.device), torch.cuda.stream(self._upload):
            images = images.to(self.device)
        downloaded, done = self._launcher.submit(self._launch, images).result()
        # Until here `images` must live: to the allocator its memory is the upload stream's, and free for the next
        # upload as soon as nobody holds it.
        done.synchronize()
        return downloaded

    @torch.inference_mode()
    def _launch(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.cuda.Event]:
        """Embeddings on their way to pinned memory, and the event that tells of their arrival."""
        forward = self._recorded if images.dtype == torch.uint8 else self._forward
        with torch.cuda.device(self.device):
            embeddings = forward(images)
            downloaded = torch.empty(embeddings.shape, pin_memory=True).copy_(embeddings, non_blocking=True)
            done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            done.record()
        return downloaded, done

    def _forward(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 pixels `[N, S, S, 3]` or float32 pixel values `[N, 3, S, S]` -> float32 embeddings `[N, D]`."""
        pixel_values = self._normalize(images) if images.dtype == torch.uint8 else images
        return self._tower(pixel_values.to(self.dtype)).float()

    def _normalize(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.to(torch.float32).mul_(self._scale).sub_(self._offset).permute(0, 3, 1, 2)


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
            checkpoint,
            config=config,
            revision=revision,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # or it would be told without a name
        )
    except Exception as error:
        raise StartupFault(
            f"checkpoint {checkpoint!r} has no readable weights ({_first_line(error)});"
            " to run a bare config.json for a load test, add --random-weights true"
        ) from error
    _refuse_misfit(checkpoint, report)
    return model


def resolve_devices(names: str) -> list[torch.device]:
    """`auto`, `cpu`, `cuda` or `cuda:0,cuda:1` -> devices; `auto` is the first CUDA device, else the CPU.

    Raises:
        StartupFault: a device that is not there, or named twice.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    # The driver may be too old, which otherwise only the images/s would tell.
    driver_hint = f"; is there a driver for CUDA {torch.version.cuda}?" if torch.version.cuda and not count else ""
    if names == "auto":
        names = "cuda:0" if count else "cpu"
        if driver_hint:
            logger.warning("computing on a CPU: torch sees no CUDA device%s", driver_hint)
    devices = [torch.device("cuda:0" if name == "cuda" else name) for name in names.split(",")]
    for device in devices:
        if device.type == "cuda" and (device.index or 0) >= count:
            raise StartupFault(
                f"device {device} is not there: torch sees {count} CUDA device(s){driver_hint or '; try --device auto'}"
            )
    if len(set(devices)) < len(devices):
        raise StartupFault(f"--device names a device twice: {names}")
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
        # Not told, it would ask at the terminal whether to run the checkpoint's own code, and wait.
        config = AutoConfig.from_pretrained(checkpoint, revision=revision, trust_remote_code=False)
        adapter = find_adapter_config_file(checkpoint, revision=revision)
    except Exception as error:
        raise StartupFault(f"checkpoint {checkpoint!r} cannot be read: {_first_line(error)}") from error
    vision_config = getattr(config, "vision_config", config)
    if not isinstance(vision_config, SiglipVisionConfig):
        raise StartupFault(f"checkpoint {checkpoint!r} is no SigLIP: its model type is {config.model_type!r}")
    if vision_config.num_channels != 3:
        raise StartupFault(f"checkpoint {checkpoint!r} reads images of {vision_config.num_channels} channels, not RGB")
    # Their weights are codes, which would be taken for the numbers that they stand for.
    if any(getattr(each, "quantization_config", None) for each in (config, vision_config)):
        raise StartupFault(f"checkpoint {checkpoint!r} is quantised; serve the one that it was made of")
    if not getattr(vision_config, "vision_use_head", True):
        raise StartupFault(f"checkpoint {checkpoint!r} has no pooling head, so it gives no embeddings")
    # transformers adds it to the weights where peft is installed, and passes over it without a word where it is not.
    if adapter:
        raise StartupFault(f"checkpoint {checkpoint!r} has an adapter beside its weights; merge the two or take it out")
    # The name of the weights' file where it is not the usual one, which may be there as well.
    vision_config.transformers_weights = getattr(config, "transformers_weights", None)
    return vision_config


def _refuse_misfit(checkpoint: str, report: Mapping[str, Any]) -> None:
    """Where weights and configuration are not of one model: transformers makes them fit, and goes on.

    What the weights lack, or have in another shape, it fills with random numbers; layers that are too many it leaves
    out, as it does the text tower.
    """
    if missing := sorted(report["missing_keys"]):
        raise StartupFault(f"checkpoint {checkpoint!r} lacks weights: {', '.join(missing[:3])}")
    for name, found, expected in sorted(report["mismatched_keys"]):
        raise StartupFault(
            f"checkpoint {checkpoint!r} contradicts itself: its weights have {name} in the shape {list(found)},"
            f" its config.json makes it {list(expected)}"
        )
    if spare := sorted(name for name in report["unexpected_keys"] if name.startswith("encoder.")):
        raise StartupFault(f"checkpoint {checkpoint!r} has weights that its config.json leaves out: {spare[0]}")


def _random_model(checkpoint: str, config: SiglipVisionConfig) -> SiglipVisionModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            return SiglipVisionModel(config).eval()
        except Exception as error:
            raise StartupFault(f"checkpoint {checkpoint!r} describes no model: {_first_line(error)}") from error


def _most_at_once_on_cpu(tokens: int) -> int:
    """The most images of so many tokens each that a CPU computes at once."""
    return max(1, min(_MOST_AT_ONCE_ON_CPU, _MOST_TOKENS_AT_ONCE_ON_CPU // tokens))


def _pieces(images: torch.Tensor, most: int) -> Sequence[torch.Tensor]:
    """The batch in as few pieces of about the same size as there can be of at most so many images."""
    return images.chunk(-(-len(images) // most))


def _doubling(last: int) -> Iterator[int]:
    size = 1
    while size < last:
        yield size
        size *= 2
    yield last


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0][:300]
