"""What tests of several rooms share."""

import gc
import os
import sys
from collections.abc import Iterator

import pytest

# Before anything imports torch: the same reproducible arithmetic as `python -m service` asks for.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.fixture
def uncollected() -> Iterator[None]:
    """No garbage collection comes to the help of what refers to itself."""
    gc.disable()
    yield
    gc.enable()
