"""Which requests Triton is told to put into a batch together. That tritonserver asks is tested with the real one."""

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from service.pytriton_compat import tritonserver

MIB = 2**20
Include = Callable[[int], bool]
NewBatch = Callable[[], Callable[[], Include]]


class Request(ctypes.Structure):
    """As in `fake_triton.c`."""

    _fields_ = (("bytes", ctypes.c_uint64),)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """Compiled together with what takes Triton's place."""
    if (compiler := shutil.which("cc")) is None:
        pytest.skip("no C compiler")
    here, target = Path(tritonserver.__file__).parent, tmp_path_factory.mktemp("library") / "batchstrategy.so"
    sources = [Path(__file__).with_name("fake_triton.c"), here / "batch_strategy.c", here / "free_memory.c"]
    subprocess.run([compiler, "-shared", "-fPIC", "-o", target, *sources], check=True, timeout=60)
    return ctypes.CDLL(str(target))


@pytest.fixture(scope="module")
def new_batch(library: ctypes.CDLL) -> NewBatch:
    """Makes a batch, which makes rounds: each asks for one request after another whether it is to be included."""
    pointers = [ctypes.c_void_p() for _ in range(10)]  # a new batch never has the pointer of the one before
    numbers, requests = count(), list[Request]()

    def make() -> Callable[[], Include]:
        pointer = pointers[next(numbers)]

        def begin() -> Include:
            library.TRITONBACKEND_ModelBatchInitialize(None, ctypes.byref(pointer))
            return include

        return begin

    def include(mebibytes: int) -> bool:
        requests.append(Request(mebibytes * MIB))
        answer = ctypes.c_bool()
        library.TRITONBACKEND_ModelBatchIncludeRequest(ctypes.byref(requests[-1]), None, ctypes.byref(answer))
        return answer.value

    return make


def test_a_batch_takes_64_mib_and_no_more(new_batch: NewBatch) -> None:
    include = new_batch()()
    assert [include(24), include(24), include(16), include(1)] == [True, True, True, False]
    include = new_batch()()
    assert [include(24), include(24), include(24)] == [True, True, False]


def test_one_larger_request_is_alone(new_batch: NewBatch) -> None:
    include = new_batch()()
    assert [include(100), include(1)] == [True, False]
    include = new_batch()()
    assert [include(1), include(100)] == [True, False]


def test_what_a_batch_got_before_it_was_handed_over_counts(new_batch: NewBatch) -> None:
    begin = new_batch()
    assert begin()(60)
    include = begin()
    # The first of a round is never refused for its size, or Triton would ask again at once, without a pause.
    assert [include(10), include(1)] == [True, False]
