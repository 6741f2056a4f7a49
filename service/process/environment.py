"""What torch and transformers read in the environment when they are loaded, the same wherever images are embedded.

It must not know who loads them.
"""

import os

ENVIRONMENT = {
    # Or the last bits of float32 results would depend on how many threads a batch gets.
    "MKL_CBWR": "AUTO,STRICT",
    # Or torch keeps, in each lane's thread, the kernels of 1024 shapes, hundreds of MB: every batch size has its own.
    # oneDNN's own cache, which all threads share, is as fast.
    "LRU_CACHE_CAPACITY": "1",
    # Or a thread asks a public service to convert a hub's pickled weights, and downloads what it makes of them.
    "DISABLE_SAFETENSORS_CONVERSION": "1",
    # Or the process aborts where it gives back memory that a CUDA device has used, once that device has failed for
    # good: before the batch is answered, and the failure told.
    "PYTORCH_ALLOC_CONF": "pinned_free_catch_all:True",
}


def prepare_environment() -> None:
    """Have it so in this process, but for what is set already; to be called before torch is imported."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
