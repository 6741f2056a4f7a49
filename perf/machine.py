"""The machine and the software that a measurement holds for."""

import importlib.metadata
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import psutil
import torch

from service.cores import Cores

REPOSITORY = Path(__file__).parents[1]
_PACKAGES = ("nvidia-pytriton", "torch", "transformers", "numpy", "pillow", "tritonclient", "aiohttp")


def cores() -> int:
    """Cores that this process may use."""
    return Cores().count


def describe() -> dict[str, Any]:
    """Name (fit for a file), processor, cores, memory, GPUs and operating system."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    names = [_cpu(), f"{cores()} cores", *sorted(set(gpus))]
    return {
        "name": re.sub(r"[^a-z0-9]+", "-", " ".join(names).lower()).strip("-"),
        "cpu": _cpu(),
        "cores": cores(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "gpus": gpus,
        "system": platform.platform(),
    }


def versions() -> dict[str, str]:
    """Python and the packages that a figure depends on."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in _PACKAGES}}


def commit() -> str:
    """The short commit, `-dirty` where files other than results differ from it; `unknown` outside a git checkout."""
    try:
        short = _git("rev-parse", "--short", "HEAD")
        changed = _git("diff", "--name-only", "HEAD", "--", ".", ":!perf/results", ":!perf/README.md")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{short}-dirty" if changed else short


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(REPOSITORY), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _cpu() -> str:
    """Its name, which on virtual machines says little, and the widest instructions that torch finds in it."""
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return f"{found[1].strip() if found else platform.machine()} with {torch.backends.cpu.get_cpu_capability()}"
