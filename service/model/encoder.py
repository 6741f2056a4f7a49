"""The checkpoint on its device: uint8 pixels -> embeddings.

Comes in: uint8 pixels `[N, S, S, 3]`, or ready float32 pixel values `[N, 3, S, S]`. Goes out: float32 embeddings
`[N, D]`, the model's `pooler_output`. It must not know of images, requests or batching.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, product

import numpy as np
import numpy.typing as npt
import torch
from transformers import SiglipVisionModel

from service.cores import Cores
from service.errors import StartupFault
from service.metrics import Metrics
from service.model.cuda_graphs import CudaGraphs
from service.model.vision_tower import VisionTower

logger = logging.getLogger(__name__)

# Each lane costs a process of Triton's. With more cores than this, each lane computes on several of them.
_MAX_CPU_LANES = 8
# Of a batch, for each thread but the first: with fewer, to wake it at every operator takes longer than it saves.
_LEAST_OPERATIONS_A_THREAD = 5e8
# A larger batch gains nothing. On a CPU, oneDNN makes and keeps kernels for each number of images and of threads that
# it meets: with the embedded checkpoint 5 MB each. On CUDA, each number of images is recorded.
_MOST_AT_ONCE_ON_CPU = 16
_MOST_AT_ONCE_ON_CUDA = 64
# Activations of more tokens take tens of MB each, which glibc gives back to the system as soon as they are free. Then
# memory is cleared for each operator anew: a tenth of all the time, with so400m a fifth.
_MOST_TOKENS_AT_ONCE_ON_CPU = 2200
# Rounding to half precision stays above this cosine, a fault of a library or a device does not.
_LEAST_COSINE = 0.99
# On a CPU only the first few batches are slow for being the first, and a large model may need minutes for a full one.
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
        if self._on_cuda:
            # A device that has failed raises; `encode` is where that is told and counted.
            with contextlib.suppress(RuntimeError), torch.cuda.device(self.device):
                return torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()
        return torch.empty(shape, dtype=torch.uint8).numpy()

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
        # Batches of one come twice: the first also loads libraries and kernels, and its time tells nothing of others.
        for size in chain((1,), _doubling(max_batch_size)):
            self._time_batch(size)
            if time.monotonic() > deadline:
                return size
        self._make_kernels(min(max_batch_size, self._most_at_once), deadline)
        return size

    def _make_kernels(self, most: int, deadline: float) -> None:
        """Run each number of images up to `most` on each share of the cores: oneDNN makes kernels for every such pair.

        Else they would be made for clients, who wait for them, and the process would grow for hours.
        """
        for threads, size in product(self._cores.shares(self.lanes), range(1, most + 1)):
            if time.monotonic() > deadline:
                return
            self._run_in_threads([self._blank(size)], threads)

    def _warm_up_cuda(self, max_batch_size: int) -> int:
        most = min(max_batch_size, self._most_at_once)
        self._launcher.submit(self._record, most).result()
        for size in _doubling(most):
            self._prove(size)
        # Prepared pixels are not recorded: their batches take memory beside the recordings'.
        self._run_batch(torch.zeros((most, 3, self.image_size, self.image_size)))
        self._time_batch(max_batch_size)
        held = self.held_bytes() / 2**20  # a recording keeps what it needs, also where no tensor lies in it meanwhile
        logger.info("%s: batches of up to %d take %.0f MiB, weights included", self.device, max_batch_size, held)
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

    def _prove(self, size: int) -> None:
        """Compare the known image's embedding, as the last of a batch of so many, with that of the CPU.

        Kernels are chosen by the kind of GPU and the size of the batch, and some that nobody has tried may be at fault.
        The canary would not tell: it compares what the device computes with what the same device has computed before.
        """
        images = self._blank(size)
        images[-1] = self._shades
        found = self._run_batch(images)[-1:]
        if not torch.cosine_similarity(found, self._known).item() >= _LEAST_COSINE:
            raise StartupFault(f"{self.device} computes other embeddings than it should; try another --dtype")

    def _time_batch(self, size: int) -> None:
        started = time.monotonic()
        self._run_batch(self._blank(size))
        self.image_seconds = (time.monotonic() - started) / size

    def _blank(self, size: int) -> torch.Tensor:
        return torch.from_numpy(self.room_for(size)).zero_()

    def held_bytes(self) -> int:
        """Bytes of a CUDA device's memory that torch has reserved: tensors, recordings, and what is kept for more."""
        return torch.cuda.memory_reserved(self.device)

    def _run(self, images: torch.Tensor) -> npt.NDArray[np.float32]:
        self._metrics.batch_images.observe(len(images))
        try:
            with self._metrics.stage("encode"):
                embeddings: npt.NDArray[np.float32] = self._run_or_halve(images).numpy()
        except BaseException:
            self.failures_in_a_row += 1
            self._metrics.encoder_failures.inc()
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
        # Not in the handler, which holds what the whole batch has taken.
        return torch.cat([self._run_batch(half) for half in images.chunk(2)])

    @torch.inference_mode()
    def _run_batch(self, images: torch.Tensor) -> torch.Tensor:
        pieces = images.chunk(-(-len(images) // self._most_at_once))  # as few as there can be, and nearly equal
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
        """Upload and download overlap the work of other callers; only the kernels are launched in turns.

        All of it with this device as the current one: a thread that names none gets a context on the first one, which
        takes hundreds of MB there.
        """
        with torch.cuda.device(self.device):
            with torch.cuda.stream(self._upload):
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


def _most_at_once_on_cpu(tokens: int) -> int:
    """The most images of so many tokens each that a CPU computes at once."""
    return max(1, min(_MOST_AT_ONCE_ON_CPU, _MOST_TOKENS_AT_ONCE_ON_CPU // tokens))


def _doubling(last: int) -> Iterator[int]:
    size = 1
    while size < last:
        yield size
        size *= 2
    yield last
