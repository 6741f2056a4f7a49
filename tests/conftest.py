"""What tests of several rooms share."""

import gc
import sys
from collections.abc import Generator, Iterator

import pytest

from service.process.environment import prepare_environment

prepare_environment()  # before anything imports torch


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported is there to stay: to look for garbage in it again and again takes a fifth of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


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
