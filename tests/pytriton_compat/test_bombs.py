"""What comes compressed ends below 2 GiB; to send as much takes longer than a test may."""

import ctypes

import pytest

from service.pytriton_compat.tritonserver import find_library

PRELOAD = find_library("preload")
DATA_ERROR, STREAM_ERROR = -3, -2


class Stream(ctypes.Structure):
    """The beginning of zlib's `z_stream`, without a state."""

    _fields_ = [
        ("next_in", ctypes.c_void_p),
        ("available_in", ctypes.c_uint),
        ("total_in", ctypes.c_ulong),
        ("next_out", ctypes.c_void_p),
        ("available_out", ctypes.c_uint),
        ("total_out", ctypes.c_ulong),
        ("rest", ctypes.c_char * 64),
    ]


@pytest.mark.skipif(PRELOAD is None, reason="setup has found no C compiler")
@pytest.mark.parametrize(("total", "error"), [(2**31 - 2**20 - 1, STREAM_ERROR), (2**31 - 2**20, DATA_ERROR)])
def test_what_may_become_2_gib_goes_on_no_further(total: int, error: int) -> None:
    stream = Stream(total_in=2**30, available_out=2**20, total_out=total)
    assert ctypes.CDLL(str(PRELOAD)).inflate(ctypes.byref(stream), 0) == error
