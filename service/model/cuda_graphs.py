"""A function of a batch on CUDA, recorded once for each number of images and then replayed.

Comes in: the function, and a batch of at most so many images. Goes out: what the function makes of it. Launching the
kernels of a small batch one by one takes a Python thread longer than the device needs to run them; a recording is
launched as one. It must not know what the function computes.
"""

from collections.abc import Callable

import torch


class CudaGraphs:
    """Recordings for 1 to `most` images. To be made and called by one thread, in inference mode.

    They share the memory that the largest of them needs, and so one has to end before another begins: they do, on the
    stream that is current when they are called.
    """

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor], most: int, image: torch.Tensor) -> None:
        """Record `function` for batches of images of the shape, dtype and device of `image`."""
        self._input = image.expand(most, *image.shape).contiguous()
        self._recordings: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}
        pool = torch.cuda.graph_pool_handle()
        # The one that torch takes by itself is of the device that was recorded on first, and no other's kernels.
        stream = torch.cuda.Stream(image.device)  # type: ignore[no-untyped-call]
        for size in range(most, 0, -1):
            batch = self._input[:size]
            function(batch)  # or libraries would load kernels and plan while it is recorded, which they may not
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, stream=stream):
                output = function(batch)
            self._recordings[size] = graph, output

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """What the function makes of `images`. The next call writes over it."""
        graph, output = self._recordings[len(images)]
        self._input[: len(images)].copy_(images)
        graph.replay()
        return output
