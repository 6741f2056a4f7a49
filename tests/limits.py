"""Limits of the system, set for the time of a test."""

import contextlib
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
