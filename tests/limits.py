"""Limits of the system, set or met in a test."""

import contextlib
import os
import resource
from collections.abc import Iterator


@contextlib.contextmanager
def open_files(most: int) -> Iterator[None]:
    """Let this process, and those that it starts meanwhile, have so many open files."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def full_pipe() -> tuple[int, int]:
    """Both ends of a pipe that nobody reads: it blocks whoever writes one more byte."""
    end, full = os.pipe()
    os.set_blocking(full, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(full, b"x")
    os.set_blocking(full, True)
    return end, full
