"""One service for all tests that leave it as they found it."""

import sys
from collections.abc import Iterator

import pytest

from tests.integration.service_process import ServiceProcess, service


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """With all defaults but float32, so that comparisons are not blurred by the CPU's bfloat16."""
    with service(tmp_path_factory.mktemp("service"), "--dtype", "float32", batches=()) as process:
        yield process
        print(process.output(), file=sys.stderr)
