"""No damaged image crashes the decoder, keeps it for over a second, or raises anything but a client's fault.

20,000 damaged images; more with `FUZZ_IMAGES=300000` in the environment. What fails is named by its seed, which
`tests.fuzz_images.damaged(seed)` makes again.
"""

import ctypes
import os
import struct
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.fuzz_images import corpus, damaged

IMAGES = int(os.environ.get("FUZZ_IMAGES", "20000"))
WORKERS = 2
# glibc's own, which ends a process that has written past the end of its memory.
CHECKED_MEMORY = {"LD_PRELOAD": "libc_malloc_debug.so.0", "GLIBC_TUNABLES": "glibc.malloc.check=3"}


@pytest.mark.timeout(120 + IMAGES / 20)
def test_damaged_images_are_decoded_or_refused(tmp_path: Path) -> None:
    environment = {**os.environ, **(CHECKED_MEMORY if _is_there(CHECKED_MEMORY["LD_PRELOAD"]) else {})}
    notes = [tmp_path / f"seed{worker}" for worker in range(WORKERS)]
    with ExitStack() as stack:
        processes = []
        for worker, note in enumerate(notes):
            arguments = [worker, WORKERS, IMAGES // WORKERS, note]
            command = [sys.executable, "-m", "tests.fuzz_images", *map(str, arguments)]
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
            )
            processes.append(stack.enter_context(process))
            stack.callback(process.kill)
        for process, note in zip(processes, notes, strict=True):
            out, err = process.communicate()
            seed = struct.unpack("<Q", note.read_bytes())[0] if note.exists() else "none"
            assert process.returncode == 0, f"exit status {process.returncode} at seed {seed}: {err[-2000:]}"
            assert not out
            assert not err, "something writes past Python's logging"


def _is_there(library: str) -> bool:
    try:
        return bool(ctypes.CDLL(library))
    except OSError:
        return False


def test_the_same_seed_is_the_same_damage() -> None:
    assert damaged(7) == damaged(7) != damaged(8)
    assert len(corpus()) > 100
