"""PyTriton's server with faults for single requests, a start that fails fast and an end that drops nothing."""

import atexit
import contextlib
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from pytriton.client.utils import create_client_from_url
from pytriton.triton import Triton, TritonConfig, TritonLifecyclePolicy, TritonSecurityConfig
from pytriton.utils.distribution import get_stub_path
from tritonclient.utils import InferenceServerException

from service.errors import ServiceFailure, StartupFault
from service.pytriton_compat.lane import InferenceCallable, Lane
from service.pytriton_compat.libpython import link_libpython

logger = logging.getLogger(__name__)
triton_logger = logging.getLogger("tritonserver")

_HERE = Path(__file__).parent
_STUB_FILES = {"stub_model.py": "model.py", "batch_wire.py": "batch_wire.py", "fault_wire.py": "fault_wire.py"}
_START_SECONDS = 300.0
_MAX_SOCKET_PATH = 107  # of Linux, in bytes; a longer one would show only as a start that never ends
_DRAIN_SECONDS = 120.0
_POLL_SECONDS = 0.05
_LOG_LEVELS = {"I": logging.INFO, "W": logging.WARNING, "E": logging.ERROR}


class SupervisedTriton(Triton):  # type: ignore[misc]
    """A `Triton` whose models are loaded before its ports open, and whose processes are watched.

    Use it in this order: `bind()` each model, `start()`, `check_alive()` from time to time, `drain()`, `stop()`.
    """

    def __init__(self, config: TritonConfig, workspace: Path, open_endpoints: set[str], verbose: bool) -> None:
        """Prepare a server in the new folder `workspace`.

        Args:
            open_endpoints: of the endpoints that PyTriton protects by default, those that need no token.
            verbose: log Triton's own information, too, not only its warnings and errors.
        """
        protected = set(TritonSecurityConfig().restricted_endpoints) - open_endpoints
        # A local model store makes tritonserver load every model before it listens: a port that answers is a service
        # that answers. PyTriton's default opens the ports first, and a server without models reports ready.
        super().__init__(
            config=config,
            workspace=workspace,
            triton_lifecycle_policy=TritonLifecyclePolicy(launch_triton_on_startup=True, local_model_store=True),
            security_config=TritonSecurityConfig(restricted_endpoints=sorted(protected)),
        )
        self._triton_server_config["log-info"] = verbose
        self._line = self._last_line = ""
        self._serving = False
        self._drained = False
        self._processes: list[psutil.Process] = []
        self._lanes: list[Lane] = []

    @property
    def url(self) -> str:
        """Where a client of this process reaches the server: HTTP, or gRPC where HTTP is off."""
        return str(self._url)

    def bind(self, model_name: str, infer_func: Sequence[InferenceCallable], *args: Any, **kwargs: Any) -> None:
        """PyTriton's `bind`, with a lane for each callable and our own way to it.

        Raises:
            StartupFault: the workspace lies too deep.
        """
        super().bind(model_name, infer_func, *args, **kwargs)
        folder = self._workspace.model_store_path / model_name / "1"
        for ours, theirs in _STUB_FILES.items():
            shutil.copy(_HERE / ours, folder / theirs)
        for index, infer in enumerate(infer_func):
            path = folder / f"lane-{index}.sock"
            if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
                raise StartupFault(f"{path} is too long a path for a socket; set TMPDIR to a shorter one")
            lane = Lane(path, infer)
            lane.start()
            self._lanes.append(lane)

    def start(self, interrupted: threading.Event) -> bool:
        """Start tritonserver, wait until every model answers, and take note of its processes.

        Returns whether it is ready, False when `interrupted` was set before.

        Raises:
            StartupFault: tritonserver ended, or was not ready in time.
        """
        self._offer_libpython()
        self._run_server()
        deadline = time.monotonic() + _START_SECONDS
        while not self._is_ready():
            self._check_start(deadline)
            if interrupted.wait(_POLL_SECONDS):
                return False
        self._processes = self._living_processes()
        self._serving = True
        return True

    def check_alive(self) -> None:
        """Look at every process and lane: Triton restarts none of them, and reports ready all the same.

        Raises:
            ServiceFailure: one of them has died.
        """
        for process in self._processes:
            if _has_died(process):
                raise ServiceFailure(f"process {process.pid} of tritonserver has died, no request can be answered")
        for lane in self._lanes:
            if not lane.is_alive():
                raise ServiceFailure(f"{lane.name} has ended, no request can be answered")

    def drain(self) -> None:
        """Refuse new requests, then wait until everything accepted is answered.

        Raises:
            ServiceFailure: tritonserver is gone, or requests were still in flight after the time allowed.
        """
        self._serving = False
        with contextlib.closing(create_client_from_url(self._url)) as client:
            try:
                self._report_not_ready(client)
                for model in reversed(list(self._model_manager.models)):
                    client.unload_model(model.model_name, headers=self._headers)
            except (OSError, InferenceServerException) as error:
                raise ServiceFailure(f"tritonserver could not be asked to finish its requests: {error}") from error
        # Triton ends a model's stubs, its only children, when the last of its requests has been answered.
        _, busy = psutil.wait_procs(self._processes[1:], timeout=_DRAIN_SECONDS)
        if busy:
            raise ServiceFailure(f"requests were still in flight after {_DRAIN_SECONDS:.0f} s and are dropped")
        self._drained = True

    def stop(self) -> bool:
        """Stop tritonserver and all its processes; safe to call in any state."""
        atexit.unregister(self.stop)
        processes = {*self._processes, *self._living_processes()}
        # PyTriton's own way asks every part to end and waits, for minutes where one is dead or still starting.
        stopped = bool(super().stop()) if self._drained else False
        _, alive = psutil.wait_procs(processes, timeout=5 if self._drained else 0)
        if alive:
            _kill(alive)
        return stopped

    def _living_processes(self) -> list[psutil.Process]:
        """tritonserver and all below it: a stub for each lane, and the process that keeps their shared memory."""
        if not self._is_alive_impl():
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            server = psutil.Process(self._triton_server._tritonserver_running_cmd.pid)
            return [server, *server.children(recursive=True)]
        return []

    def _report_not_ready(self, client: Any) -> None:
        """Turn `/v2/health/ready` to false for good, by a model that cannot load.

        By itself Triton reports ready again as soon as its last model is unloaded, while every request gets a 404.
        """
        folder = self._workspace.model_store_path / "draining"
        folder.mkdir()
        (folder / "config.pbtxt").write_text('name: "draining" backend: "none"')
        with contextlib.suppress(InferenceServerException):
            client.load_model("draining", headers=self._headers)

    def _initialize_server(self) -> None:
        super()._initialize_server()
        # In a session of its own: Ctrl-C in a terminal signals the whole process group, and tritonserver would end
        # with requests in flight while this process still wants to drain.
        setsid = shutil.which("setsid")
        if setsid is None:
            raise StartupFault("the command setsid is missing; install util-linux")
        self._triton_server._server_path = Path(f"{setsid} {self._triton_server._server_path}")
        # PyTriton's own method keeps all that Triton ever prints. Either is handed one byte at a time.
        self._triton_server._record_logs = self._log_output

    def _log_output(self, output: bytes | str) -> None:
        self._line += output.decode("utf-8", errors="replace") if isinstance(output, bytes) else output
        if self._line.endswith("\n"):
            line, self._line = self._line.strip(), ""
            if line:
                self._last_line = line
                # While it starts without a GPU, and while it drains, Triton prints errors that are none.
                level = _LOG_LEVELS.get(line[0], logging.INFO) if self._serving else logging.DEBUG
                triton_logger.log(level, "%s", line)

    def _on_tritonserver_exit(self, *_: Any) -> None:
        """Leave the end of tritonserver to `check_alive()`: PyTriton would end this process with success."""

    def _offer_libpython(self) -> None:
        folder = self._workspace.path / "libpython"
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        link_libpython(Path(get_stub_path(version)), folder)
        inherited = os.environ.get("LD_LIBRARY_PATH")
        os.environ["LD_LIBRARY_PATH"] = f"{folder}:{inherited}" if inherited else str(folder)

    def _is_ready(self) -> bool:
        with contextlib.closing(create_client_from_url(self._url)) as client:
            try:
                return bool(client.is_server_ready(headers=self._headers))
            except (OSError, InferenceServerException):
                return False

    def _check_start(self, deadline: float) -> None:
        if not self._triton_server.is_alive():
            raise StartupFault(f"tritonserver ended while it started; its last line: {self._last_line[:500]}")
        if time.monotonic() > deadline:
            raise StartupFault(f"tritonserver was not ready after {_START_SECONDS:.0f} s")


def _has_died(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE) or not process.is_running()
    except psutil.NoSuchProcess:
        return True


def _kill(processes: Sequence[psutil.Process]) -> None:
    """End the processes at once, and remove the shared memory that they can no longer remove themselves."""
    segments = {path for process in [psutil.Process(), *processes] for path in _shared_memory(process)}
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    for segment in segments:
        segment.unlink(missing_ok=True)


def _shared_memory(process: psutil.Process) -> list[Path]:
    """The files of /dev/shm that a process has mapped and that are still there."""
    with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
        paths = (Path(each.path) for each in process.memory_maps())
        return [path for path in paths if path.parent == Path("/dev/shm") and path.exists()]
    return []
