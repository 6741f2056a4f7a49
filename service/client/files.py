"""Files that appear whole or not at all, and that survive a power failure.

Comes in: paths, and functions that write what is to be there. Goes out: files. It must not know what is in them.
"""

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO


def replace(writers: Mapping[Path, Callable[[IO[bytes]], object]]) -> None:
    """Let each function make the file at its path; they appear when all are whole, or not at all.

    Of several the first one is away while they change places: whoever is killed there leaves none of an earlier run
    beside those of this one, which a reader could not tell.
    """
    try:
        for path, write in writers.items():
            with unfinished(path).open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
        first, *others = writers
        if others:
            first.unlink(missing_ok=True)
        for path in (*others, first):
            os.replace(unfinished(path), path)
    finally:
        for path in writers:
            unfinished(path).unlink(missing_ok=True)  # or it would keep a full disk full
    for folder in {path.parent for path in writers}:
        keep_names(folder)


def unfinished(path: Path) -> Path:
    """Where a file is made: with a dot, as those who read all of a folder pass over such names."""
    return path.with_name(f".{path.name}.unfinished")


def keep_names(folder: Path) -> None:
    """Have the names in a folder survive a power failure, where its file system can promise that."""
    with contextlib.suppress(OSError):
        keep(folder)


def keep(path: Path) -> None:
    """Have a file, or the names in a folder, survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
