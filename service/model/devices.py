"""Where to compute, and in what: the settings' words -> torch's devices and dtypes.

Comes in: `--device` and `--dtype`. Goes out: what of them this machine has. It must not know what is computed.
"""

import logging

import torch

from service.errors import StartupFault

logger = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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
