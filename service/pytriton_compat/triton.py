"""A tritonserver whose start fails fast, whose parts are watched, and whose end drops nothing.

Comes in: models, each with a callable for each of its lanes. Goes out: a server that answers for them, or the failure
that it does not. It must not know what the callables do.
"""

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from service.errors import ServiceFailure, StartupFault
from service.pytriton_compat.host import check_shared_memory, close_shared_memory, is_shared_memory_scarce
from service.pytriton_compat.lane import InferenceCallable, Lane
from service.pytriton_compat.pulse import Pulse
from service.pytriton_compat.server_processes import end, has_died, limit_files
from service.pytriton_compat.tritonserver import Tritonserver
from service.pytriton_compat.turns import Turns

logger = logging.getLogger(__name__)

_MAX_SOCKET_PATH = 107  # of Linux, in bytes; a longer one would show only as a start that never ends
_POLL_SECONDS = 0.05
_DRAIN_SECONDS = 120.0
_LOSS_SECONDS = 5.0  # in which Triton ends of a stub that has died at its start, or clears it away, if it does
_LANE_SECONDS = 2.0  # in which a lane sees that its stub has ended
_LIVE_SECONDS = 10.0


class TritonFailure(ServiceFailure):
    """A server, one of its stubs or their lane can answer no more. A new server can, in this same process."""


class SupervisedTriton:
    """A tritonserver, its stubs, and for each stub a lane that answers its batches and a pulse that tells if it hangs.

    Use it in this order: `bind()` each model, `start()`, `check_alive()` from time to time, `report_not_ready()`,
    `drain()`, `stop()`.
    """

    def __init__(self, server: Tritonserver, stub_bytes: int) -> None:
        """Take over a server that is not started yet.

        `stub_bytes` is the most shared memory of a stub: a batch that needs more gets a 500, and none of it stays.
        """
        self._server = server
        self._unloadable = server.folder / "draining"
        self._stub_bytes = stub_bytes
        self._lanes: list[Lane] = []
        self._pulses: list[Pulse] = []
        self._processes: list[psutil.Process] = []
        self._drained = False

    def bind(self, model: str, callables: Sequence[InferenceCallable], *args: Any, **kwargs: Any) -> None:
        """Serve a model, with a lane and a stub for each callable; the rest is as for `Tritonserver.add_model`.

        Raises:
            StartupFault: the server's folder lies too deep.
        """
        folder = self._server.add_model(model, callables, *args, **kwargs)
        for index, infer in enumerate(callables):
            path = folder / f"pulse-{index}.sock"
            if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
                raise StartupFault(f"{path} is too long a path for a socket; set TMPDIR to a shorter one")
            self._lanes.append(Lane(model, folder / f"lane-{index}.sock", infer))
            self._pulses.append(Pulse(path))
            self._lanes[-1].start()
            self._pulses[-1].start()

    def start(self, interrupted: threading.Event, seconds: float) -> bool:
        """Start tritonserver, wait until every model answers, for so many seconds, and take note of its processes.

        Returns whether it is ready, False when `interrupted` was set before.

        Raises:
            OSError: there is no room for a file.
            StartupFault: tritonserver ended, was not ready in time, or would lack shared memory.
        """
        check_shared_memory(len(self._lanes))
        _make_unloadable_model(self._unloadable)
        self._server.launch()
        started = had_all = time.monotonic()
        while not self._server.is_ready():
            close_shared_memory(self._server.folder.name)
            if not self._server.is_running():
                raise StartupFault(f"tritonserver ended while it started; {self._server.log.last_words}")
            now = time.monotonic()
            if not self._server.has_lost_a_stub():
                had_all = now
            if (waited := now - started) > seconds or now - had_all > _LOSS_SECONDS:
                raise StartupFault(f"tritonserver was not ready after {waited:.0f} s; {self._server.log.last_words}")
            # Requests that it has accepted since are to be answered.
            if interrupted.wait(_POLL_SECONDS) and not self._server.is_ready():
                return False
        self._processes = self._server.processes()
        if not self._processes:
            raise StartupFault(f"tritonserver ended when it was ready; {self._server.log.last_words}")
        close_shared_memory(self._server.folder.name)
        self._server.hide_tokens()
        # A stub's shared memory grows with its largest batch and never shrinks. It is a file, which can be limited.
        limit_files(self._processes, self._stub_bytes)
        self._turns = Turns(self._lanes)
        self._server.log.is_serving = True
        return True

    def check_alive(self, canary_seconds: float) -> None:
        """Look at every process and lane: Triton restarts none of them, and reports ready all the same.

        A canary is sent every `canary_seconds`.

        Raises:
            TritonFailure: one of them has died or hangs.
        """
        for process in self._processes:
            if has_died(process):
                is_server = process == self._processes[0]
                how = self._server.how_it_ended() if is_server else "it is a stub, or what keeps their memory"
                raise TritonFailure(f"process {process.pid} of tritonserver has died: {how}")
        for lane, pulse in zip(self._lanes, self._pulses, strict=True):
            if not lane.is_alive():
                raise TritonFailure(f"{lane.name} has ended")
            if not pulse.is_alive():
                raise TritonFailure(f"the stub of {lane.name} hangs")
        if (passed_over := self._turns.passed_over(canary_seconds)) and not is_shared_memory_scarce():
            raise TritonFailure(f"the stub of {passed_over.name} gets no batches, while others do")

    def batches(self, model: str | None = None) -> int:
        """The number of batches that have reached a lane so far, of one model or of all."""
        return sum(lane.batches for lane in self._lanes if model in (None, lane.model))

    def is_working(self, model: str | None = None) -> bool:
        """Whether a lane has a batch in the works, of one model or of all."""
        return any(lane.in_the_works for lane in self._lanes if model in (None, lane.model))

    def report_not_ready(self) -> None:
        """Turn `/v2/health/ready` to false for good, while requests are answered as before.

        It is a model that cannot load that does it. By itself Triton reports ready again as soon as its last model is
        unloaded, while every request gets a 404.

        Raises:
            ServiceFailure: tritonserver is gone.
        """
        self._server.log.is_serving = False
        model = self._server.model_store / self._unloadable.name
        # By now the disk may be full; or what clears TMPDIR of old files has been there.
        with contextlib.suppress(FileNotFoundError):
            self._unloadable.rename(model)
        _make_unloadable_model(model)
        self._server.ask_to("load", model.name)

    def drain(self, idle_seconds: float) -> None:
        """Refuse new requests, then wait until everything accepted is answered. Call `report_not_ready()` before.

        Args:
            idle_seconds: longer than any request that is not answered yet can be on its way to a lane, and than a stub
                that hangs goes unnoticed.

        Raises:
            ServiceFailure: tritonserver or a stub is gone or hangs, or requests were still in flight after the time
                allowed.
        """
        for model in reversed(self._server.model_names):
            if not self._server.ask_to("unload", model):
                raise ServiceFailure(f"tritonserver refuses to unload {model}")
        deadline = time.monotonic() + _DRAIN_SECONDS
        logger.info("draining: %s", self._left())
        while not self._has_answered_all(idle_seconds):
            if time.monotonic() > deadline:
                raise ServiceFailure(f"requests were still in flight after {_DRAIN_SECONDS:.0f} s and are dropped")
            logger.info("still draining: %s", self._left())
        self._drained = True

    def _left(self) -> str:
        """The accepted requests that are not answered yet; of those that no lane has, only Triton's metrics tell."""
        left = f"{sum(lane.in_the_works for lane in self._lanes)} requests in the works"
        waiting = self._server.waiting()
        return left if waiting is None else f"{left}, {waiting} waiting for a batch"

    def _has_answered_all(self, idle_seconds: float) -> bool:
        """Wait, for so many seconds, until Triton has ended all stubs, as it does when the last request is answered.

        It does not do so where it has refused a batch of several as a whole, as for one that lies about a length where
        there is no `whole_strings.c`. Then everything is answered when no lane has had a batch in all that time.
        """
        before, was_working = self.batches(), self.is_working()
        _, left = psutil.wait_procs(self._processes[1:], timeout=idle_seconds)
        if has_died(self._processes[0]):
            raise ServiceFailure("tritonserver has died before everything accepted was answered")
        for lane in self._lanes:
            lane.join(0 if left else _LANE_SECONDS)
        # It may have taken the lane's answers and not handed them on.
        if any(not lane.is_alive() and not lane.was_let_go for lane in self._lanes):
            raise ServiceFailure("a stub has died before everything accepted was answered")
        silent = any(pulse.fell_silent for pulse in self._pulses)
        if left and (silent or not self._server.reports("live", _LIVE_SECONDS)):
            raise ServiceFailure("tritonserver or a stub hangs before everything accepted was answered")
        return not left or not (was_working or self.is_working() or self.batches() > before)

    def stop(self) -> None:
        """Stop tritonserver and all its processes; safe to call in any state."""
        processes = {*self._processes, *self._server.processes()}
        if self._drained:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._processes[0].send_signal(signal.SIGINT)
        end(processes, were_told=self._drained)
        end(self._server.orphans(), were_told=False)
        for path in self._server.model_store.glob("*/1/*.sock"):
            # A lane or a pulse whose stub has never come would wait for it for ever. The others do not listen any more.
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as stub:
                stub.connect(str(path))


def _make_unloadable_model(folder: Path) -> None:
    """A model of no backend, unless it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config.pbtxt"
    if not config.exists():
        config.write_text(f'name: "{folder.name}" backend: "none"')
