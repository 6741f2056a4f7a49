"""A CUDA device on the CPU that works as late as it may: nothing is computed before somebody waits for it.

What has not been computed is NaN, and what is read too late holds what has been written there meanwhile. So code that
waits for too little, or keeps what will be written over, gives other numbers here every time, on a GPU now and then.
"""

import contextlib
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

Work = Callable[[], object]

RESERVED_BYTES = 3 * 2**20
_LATE = 85  # what bytes are before they are computed
_ON_THE_FIRST = "CUDA would make a context on the first device, whichever the current one should be"


class Stream:
    """Work in its order, done by whoever waits for it."""

    _lock = threading.RLock()

    def __init__(self, device: object = None) -> None:
        self.device = device
        self.work = deque[Work]()
        self.done = 0

    def end(self) -> int:
        """The place behind all work so far."""
        with self._lock:
            return self.done + len(self.work)

    def synchronize(self, place: int | None = None) -> None:
        """Wait for the work up to a place, or all of it."""
        with self._lock, torch.inference_mode(), _disable_current_modes():
            place = self.end() if place is None else place
            while self.done < place:
                self.work.popleft()()
                self.done += 1


class Event:
    """A place in the stream that was current."""

    def __init__(self, blocking: bool = False) -> None:
        self.blocking = blocking

    def record(self) -> None:
        """Here."""
        self._stream = _current()
        self._place = self._stream.end()

    def synchronize(self) -> None:
        """Wait for it."""
        assert is_chosen(), _ON_THE_FIRST
        assert self.blocking, "the thread would wait at the cost of a core"
        self._stream.synchronize(self._place)


class Recording(Stream):
    """Stands for `torch.cuda.CUDAGraph`: the same operators on the same memory, each time."""

    def replay(self) -> None:
        """Put all of it into the stream that is current."""
        _current().work.extend(self.work)


class _OnTheCpu(TorchFunctionMode):
    """Whoever names a CUDA device gets the CPU; what goes from one to the other is copied."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.pop("pin_memory", False):
            return _pinned(partial(function, *args, **kwargs))
        device = next((each for each in (*args, *kwargs.values()) if isinstance(each, torch.device)), None)
        if device is None or device.type != "cuda":
            return function(*args, **kwargs)
        args = tuple(torch.device("cpu") if each is device else each for each in args)
        kwargs = {name: torch.device("cpu") if each is device else each for name, each in kwargs.items()}
        if function is not torch.Tensor.to:
            return function(*args, **kwargs)
        copied = function(*args, **{**kwargs, "copy": True})
        if not kwargs.get("non_blocking"):
            _current().synchronize()
        return copied if _current() is _DEFAULT else _until_it_is_dropped(copied)


def _until_it_is_dropped(memory: torch.Tensor) -> torch.Tensor:
    """To the allocator it is free for its own stream then, whatever others have to read there."""

    def overwrite() -> None:
        with torch.inference_mode(), _disable_current_modes():
            memory.fill_(_LATE)

    held = memory.detach()
    weakref.finalize(held, overwrite)
    return held


_pinned_memory = set[int]()  # where it lies


def _pinned(make: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Memory of the host, which is there at once, and belongs to no stream."""
    assert is_chosen(), _ON_THE_FIRST
    with _disable_current_modes():
        memory = make()
        memory.fill_(torch.nan if memory.is_floating_point() else _LATE)
    address = memory.untyped_storage().data_ptr()
    _pinned_memory.add(address)
    weakref.finalize(memory, _pinned_memory.discard, address)
    return memory


def _waits(target: torch.Tensor, _: object, non_blocking: object = False) -> bool:
    """Whether a copy is a download, of which nobody has said that it need not be over."""
    return target.untyped_storage().data_ptr() in _pinned_memory and not non_blocking


class _Later(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Operators become work of the current stream; only where their results lie is known at once."""

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if operator._schema.is_mutable:
            _current().work.append(partial(operator, *map(_same_memory, args), **kwargs))
            if operator is torch.ops.aten.copy_.default and _waits(*args):
                _current().synchronize()
            return args[0]
        results = operator(*args, **kwargs)
        memory = {each.untyped_storage().data_ptr() for each in args if isinstance(each, torch.Tensor)}
        new = [each for each in _tensors(results) if each.untyped_storage().data_ptr() not in memory]
        for each in new:
            each.fill_(torch.nan if each.is_floating_point() else _LATE)
        if new:
            _current().work.append(partial(_compute, operator, tuple(map(_same_memory, args)), kwargs, results))
        return results


def _same_memory(argument: object) -> object:
    """Work that has not been done holds no tensor, and keeps none from being dropped."""
    return argument.detach() if isinstance(argument, torch.Tensor) else argument


def _compute(operator: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], results: Any) -> None:
    for result, computed in zip(_tensors(results), _tensors(operator(*args, **kwargs)), strict=True):
        result.copy_(computed)


def _tensors(results: Any) -> list[torch.Tensor]:
    return [each for each in (results if isinstance(results, tuple) else [results]) if isinstance(each, torch.Tensor)]


_DEFAULT = Stream()
_thread = threading.local()


def _current() -> Stream:
    stream: Stream = getattr(_thread, "stream", _DEFAULT)
    return stream


@contextlib.contextmanager
def stream(chosen: Stream) -> Iterator[None]:
    """Stands for `torch.cuda.stream`."""
    before, _thread.stream = _current(), chosen
    yield
    _thread.stream = before


@contextlib.contextmanager
def graph(recording: Recording, **_: object) -> Iterator[None]:
    """Stands for `torch.cuda.graph`."""
    with stream(recording):
        yield


def is_chosen() -> bool:
    """Whether this thread has said which device is its current one."""
    return getattr(_thread, "is_chosen", False)


@contextlib.contextmanager
def device(_: torch.device) -> Iterator[None]:
    """Stands for `torch.cuda.device`: there are no operators of CUDA but within."""
    before, _thread.is_chosen = is_chosen(), True
    try:
        with _OnTheCpu(), _Later():  # type: ignore[no-untyped-call]
            yield
    finally:
        _thread.is_chosen = before


def _gelu_in_tanh_form(bias: torch.Tensor, rows: torch.Tensor, weight: torch.Tensor, use_gelu: bool) -> torch.Tensor:
    return torch.nn.functional.gelu(torch.addmm(bias, rows, weight), approximate="tanh")


@pytest.fixture
def lazy_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stream]:
    """In the place of CUDA; of operators that a CPU does otherwise, too. It gives the default stream."""
    for name, stands_in in {"Stream": Stream, "Event": Event, "CUDAGraph": Recording}.items():
        monkeypatch.setattr(torch.cuda, name, stands_in)
    for function in (stream, graph, device):
        monkeypatch.setattr(torch.cuda, function.__name__, function)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: RESERVED_BYTES)
    monkeypatch.setattr(torch, "_addmm_activation", _gelu_in_tanh_form)
    with _OnTheCpu():
        yield _DEFAULT
