"""PyTriton's server with faults for single requests, a start that fails fast and an end that drops nothing."""

import atexit
import contextlib
import http.client
import logging
import math
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from pytriton.server.triton_server_config import TritonServerConfig
from pytriton.triton import Triton, TritonConfig, TritonLifecyclePolicy, TritonSecurityConfig
from pytriton.utils.distribution import get_stub_path

from service.access import Access
from service.errors import ServiceFailure, StartupFault
from service.process.local_client import LocalClient
from service.process.workspace import SHARED_MEMORY
from service.pytriton_compat.command_line import overwrite_arguments
from service.pytriton_compat.lane import InferenceCallable, Lane
from service.pytriton_compat.libpython import link_libpython
from service.pytriton_compat.pulse import Pulse
from service.pytriton_compat.server_log import ServerLog
from service.pytriton_compat.server_processes import end, has_died, limit_files, listens, process_tree, room_for_server
from service.pytriton_compat.turns import Turns

logger = logging.getLogger(__name__)

_HERE = Path(__file__).parent
_STUB_FILES = {
    "stub_model.py": "model.py",
    "batch_wire.py": "batch_wire.py",
    "fault_wire.py": "fault_wire.py",
    "pulse.py": "pulse.py",
}
_UNANSWERED = (OSError, http.client.HTTPException)
# Triton starts its stubs with a shell, and puts what they are given between no quotes; PyTriton writes ASCII alone.
_USABLE_PATH = re.compile(r"[\w/.+@=-]+", re.ASCII)
_MAX_SOCKET_PATH = 107  # of Linux, in bytes; a longer one would show only as a start that never ends
_DRAIN_SECONDS = 120.0
_POLL_SECONDS = 0.05
_ANSWER_SECONDS = 2.0
_ADMIN_SECONDS = 20.0
_LIFE_SECONDS = 10.0
_WAITING = re.compile(rb"^nv_inference_pending_request_count\{.*\} (\d+)$", re.MULTILINE)
_OUTPUT_BYTES = 2**16
_DISK_MEBIBYTES = 22  # that its programs take
_STUB_MEBIBYTES = 4  # that a stub takes of it before its first request
_ADMIN_ENDPOINTS = ("shared-memory", "model-repository", "trace", "logging")
_USER_ENDPOINTS = ("inference", "statistics")
_LIBRARY_PATH = os.environ.get("LD_LIBRARY_PATH")  # as it was before any server of ours


class TritonFailure(ServiceFailure):
    """A server, one of its stubs or their lane can answer no more. A new server can, in this same process."""


class _ServerArguments(TritonServerConfig):  # type: ignore[misc]
    """PyTriton's own list of arguments breaks at the spaces within one."""

    def to_args_list(self) -> list[str]:
        return [
            f"--{name}={value}"
            for name, values in self.server_args().items()
            for value in (values if isinstance(values, list | tuple) else [values])
            if value is not None
        ]


class SupervisedTriton(Triton):  # type: ignore[misc]
    """A `Triton` whose models are loaded before its ports open, and whose processes are watched.

    Use it in this order: `bind()` each model, `start()`, `check_alive()` from time to time, `report_not_ready()`,
    `drain()`, `stop()`.
    """

    def __init__(self, config: TritonConfig, workspace: Path, access: Access, stub_bytes: int, verbose: bool) -> None:
        """Prepare a server with its files in the folder `workspace`.

        Args:
            workspace: its name is also what the names of shared memory begin with.
            stub_bytes: the most shared memory of a stub; a batch that needs more is answered with 500, and none of it
                stays.
            verbose: log Triton's own information, too, not only its warnings and errors.

        Raises:
            StartupFault: Triton cannot use the workspace, or /tmp.
        """
        _check_workspace(workspace.resolve())  # as PyTriton gives it to Triton
        self._folder = workspace
        self._unloadable = workspace / "draining"
        self._access = access
        self._http, self._http_port = LocalClient(config.http_address, config.http_port), config.http_port
        self._metrics = LocalClient(config.metrics_address, config.metrics_port) if config.allow_metrics else None
        self._stub_bytes = stub_bytes
        self._batch_strategy, self._preload = find_library("batchstrategy"), find_library("preload")
        if self._batch_strategy is None or self._preload is None:
            logger.warning(
                "no C compiler was there at setup: a request that lies about a length fails all that share its batch,"
                " clients may get bytes, or after a freeze embeddings, of others, and a few bytes can end tritonserver"
            )
        self._triton_server_config: TritonServerConfig
        # A local model store makes tritonserver load every model before it listens: a port that answers is a service
        # that answers. PyTriton's default opens the ports first, and a server without models reports ready.
        super().__init__(
            config=config,
            workspace=workspace / "triton",
            triton_lifecycle_policy=TritonLifecyclePolicy(launch_triton_on_startup=True, local_model_store=True),
            security_config=TritonSecurityConfig(access.admin_token, list(_ADMIN_ENDPOINTS)),
        )
        self._triton_server_config["log-info"] = verbose
        self._log = ServerLog()
        self._drained = False
        self._has_ended, self._exit_code = threading.Event(), 0
        self._processes: list[psutil.Process] = []
        self._lanes: list[tuple[Lane, Pulse]] = []

    def bind(
        self,
        model_name: str,
        infer_func: Sequence[InferenceCallable],
        *args: Any,
        parameters: Mapping[str, str],
        **kwargs: Any,
    ) -> None:
        """PyTriton's `bind`, with a lane for each callable and our own way to it.

        Args:
            parameters: what the model's configuration tells clients beside its tensors.

        Raises:
            StartupFault: the workspace lies too deep.
        """
        super().bind(model_name, infer_func, *args, **kwargs)
        self._tell(model_name, parameters)
        folder = self._workspace.model_store_path / model_name / "1"
        for ours, theirs in _STUB_FILES.items():
            shutil.copy(_HERE / ours, folder / theirs)
        if self._batch_strategy:
            shutil.copy(self._batch_strategy, folder / "batchstrategy.so")
        for index, infer in enumerate(infer_func):
            path = folder / f"pulse-{index}.sock"
            if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
                raise StartupFault(f"{path} is too long a path for a socket; set TMPDIR to a shorter one")
            lane, pulse = Lane(model_name, folder / f"lane-{index}.sock", infer), Pulse(path)
            lane.start()
            pulse.start()
            self._lanes.append((lane, pulse))

    def _tell(self, model_name: str, parameters: Mapping[str, str]) -> None:
        """Write the model's configuration again, with these parameters instead of a path that only PyTriton needs."""
        (model,) = (model for model in self._model_manager.models if model.model_name == model_name)
        model._get_triton_model_config().backend_parameters = dict(parameters)
        model.generate_model(self._workspace.model_store_path)

    def start(self, interrupted: threading.Event, seconds: float) -> bool:
        """Start tritonserver, wait until every model answers, for so many seconds, and take note of its processes.

        Returns whether it is ready, False when `interrupted` was set before.

        Raises:
            OSError: there is no room for a file.
            StartupFault: tritonserver ended, was not ready in time, or would lack shared memory.
        """
        self._check_shared_memory()
        self._offer_libpython()
        self._tell_largest_tensor()
        _make_unloadable_model(self._unloadable)
        with room_for_server(self._offer_preload()):
            self._run_server()
        deadline = time.monotonic() + seconds
        while not self._is_ready():
            self._close_shared_memory()
            if not self._triton_server.is_alive():
                raise StartupFault(f"tritonserver ended while it started; {self._log.last_words}")
            if time.monotonic() > deadline:
                raise StartupFault(f"tritonserver was not ready after {seconds:.0f} s")
            # Requests that it has accepted since are to be answered.
            if interrupted.wait(_POLL_SECONDS) and not self._is_ready():
                return False
        self._processes = self._living_processes()
        if not self._processes:
            raise StartupFault(f"tritonserver ended when it was ready; {self._log.last_words}")
        self._close_shared_memory()
        self._hide_tokens()
        # A stub's shared memory grows with its largest batch and never shrinks. It is a file, which can be limited.
        limit_files(self._processes, self._stub_bytes)
        self._turns = Turns([lane for lane, _ in self._lanes])
        self._log.is_serving = True
        return True

    def check_alive(self, canary_seconds: float) -> None:
        """Look at every process and lane: Triton restarts none of them, and reports ready all the same.

        A canary is sent every `canary_seconds`.

        Raises:
            TritonFailure: one of them has died or hangs.
        """
        for process in self._processes:
            if has_died(process):
                how = self._exit() if process == self._processes[0] else "it is a stub, or what keeps their memory"
                raise TritonFailure(f"process {process.pid} of tritonserver has died: {how}")
        for lane, pulse in self._lanes:
            if not lane.is_alive():
                raise TritonFailure(f"{lane.name} has ended")
            if not pulse.is_alive():
                raise TritonFailure(f"the stub of {lane.name} hangs")
        if (passed_over := self._turns.passed_over(canary_seconds)) and not _is_shared_memory_scarce():
            raise TritonFailure(f"the stub of {passed_over.name} gets no batches, while others do")

    def batches(self, model: str | None = None) -> int:
        """The number of batches that have reached a lane so far, of one model or of all."""
        return sum(lane.batches for lane, _ in self._lanes if model in (None, lane.model))

    def is_working(self, model: str | None = None) -> bool:
        """Whether a lane has a batch in the works, of one model or of all."""
        return any(lane.in_the_works for lane, _ in self._lanes if model in (None, lane.model))

    def report_not_ready(self) -> None:
        """Turn `/v2/health/ready` to false for good, while requests are answered as before.

        It is a model that cannot load that does it. By itself Triton reports ready again as soon as its last model is
        unloaded, while every request gets a 404.

        Raises:
            ServiceFailure: tritonserver is gone.
        """
        self._log.is_serving = False
        model = self._workspace.model_store_path / self._unloadable.name
        # By now the disk may be full; or what clears TMPDIR of old files has been there.
        with contextlib.suppress(FileNotFoundError):
            self._unloadable.rename(model)
        _make_unloadable_model(model)
        self._ask_to("load", model.name)

    def drain(self, idle_seconds: float) -> None:
        """Refuse new requests, then wait until everything accepted is answered. Call `report_not_ready()` before.

        Args:
            idle_seconds: longer than any request that is not answered yet can be on its way to a lane, and than a stub
                that hangs goes unnoticed.

        Raises:
            ServiceFailure: tritonserver or a stub is gone or hangs, or requests were still in flight after the time
                allowed.
        """
        for model in reversed(list(self._model_manager.models)):
            if not self._ask_to("unload", model.model_name):
                raise ServiceFailure(f"tritonserver refuses to unload {model.model_name}")
        deadline = time.monotonic() + _DRAIN_SECONDS
        logger.info("draining: %s", self._left())
        while not self._has_answered_all(idle_seconds):
            if time.monotonic() > deadline:
                raise ServiceFailure(f"requests were still in flight after {_DRAIN_SECONDS:.0f} s and are dropped")
            logger.info("still draining: %s", self._left())
        self._drained = True

    def _left(self) -> str:
        """The accepted requests that are not answered yet; of those that no lane has, only Triton's metrics tell."""
        left = f"{sum(lane.in_the_works for lane, _ in self._lanes)} requests in the works"
        if self._metrics:
            with contextlib.suppress(*_UNANSWERED):
                _, metrics = self._metrics.get("/metrics", _ANSWER_SECONDS)
                left += f", {sum(map(int, _WAITING.findall(metrics)))} waiting for a batch"
        return left

    def _has_answered_all(self, idle_seconds: float) -> bool:
        """Wait so long for the stubs, Triton's only children, which it ends when the last request is answered.

        It does not where it has refused a batch as a whole, for a lie about lengths in one of its requests. But then
        nothing is in a lane, nor reaches one, for all that time.
        """
        before, was_working = self.batches(), self.is_working()
        _, left = psutil.wait_procs(self._processes[1:], timeout=idle_seconds)
        if has_died(self._processes[0]):
            raise ServiceFailure("tritonserver has died before everything accepted was answered")
        for lane, _ in self._lanes:
            lane.join(0 if left else _ANSWER_SECONDS)
        # It may have taken the lane's answers and not handed them on.
        if any(not lane.is_alive() and not lane.was_let_go for lane, _ in self._lanes):
            raise ServiceFailure("a stub has died before everything accepted was answered")
        if left and (any(pulse.fell_silent for _, pulse in self._lanes) or not self._answers("live", _LIFE_SECONDS)):
            raise ServiceFailure("tritonserver or a stub hangs before everything accepted was answered")
        return not left or not (was_working or self.is_working() or self.batches() > before)

    def stop(self) -> None:
        """Stop tritonserver and all its processes; safe to call in any state.

        Not by PyTriton, which waits, for minutes where a part is dead or still starting, and swallows the exception of
        a signal meanwhile.
        """
        atexit.unregister(self.stop)
        processes = {*self._processes, *self._living_processes()}
        if self._drained:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._processes[0].send_signal(signal.SIGINT)
        end(processes, were_told=self._drained)

    def _close_shared_memory(self) -> None:
        """Clients' images pass through it, and Triton lets every user of the machine read it, whatever the umask."""
        for segment in SHARED_MEMORY.glob(f"{self._shm_prefix()}*"):
            with contextlib.suppress(FileNotFoundError):
                segment.chmod(0o600)

    def _hide_tokens(self) -> None:
        """Every user of a machine can read the command lines of its processes; tritonserver has read its own by now."""
        tokens = [token for token in (self._access.http_token, self._security_config.access_token) if token]
        try:
            overwrite_arguments(self._processes[0].pid, tokens)
        except OSError as error:
            logger.warning("the tokens stay visible on tritonserver's command line: %s", error.strerror)

    def _living_processes(self) -> list[psutil.Process]:
        """tritonserver and all below it: a stub for each lane, and the process that keeps their shared memory."""
        return process_tree(self._triton_server._tritonserver_running_cmd.pid) if self._is_alive_impl() else []

    def _ask_to(self, action: str, model: str) -> bool:
        """Have tritonserver `load` or `unload` a model, and return whether it did.

        Not by tritonclient: where a second signal ends the wait, its gevent prints a traceback.

        Raises:
            ServiceFailure: it does not answer.
        """
        try:
            path = f"/v2/repository/models/{model}/{action}"
            status, _ = self._http.post(path, b"{}", _ADMIN_SECONDS, self._headers)
        except _UNANSWERED as error:
            raise ServiceFailure(f"tritonserver could not be asked to finish its requests: {error}") from error
        return status == 200

    def _prepare_triton_config(self, workspace: Any) -> None:
        super()._prepare_triton_config(workspace)
        arguments = _ServerArguments()
        arguments.update_config(self._triton_server_config.server_args())
        self._triton_server_config = arguments
        tokens = {
            "http-restricted-api": self._access.http_token,
            "grpc-restricted-protocol": self._access.token,
        }
        for name, token in tokens.items():
            if token:
                arguments[name] = [arguments[name], f"{','.join(_USER_ENDPOINTS)}:authorization=Bearer {token}"]
        if tls := self._access.grpc_tls:
            arguments["grpc-use-ssl"], arguments["grpc-use-ssl-mutual"] = 1, int(tls.client_ca is not None)
            arguments["grpc-server-cert"], arguments["grpc-server-key"] = tls.certificate, tls.key
            arguments["grpc-root-cert"] = tls.client_ca

    def _shm_prefix(self) -> str:
        """What stubs that are killed leave is found by the folder's name."""
        return f"{self._folder.name}-"

    def _initialize_server(self) -> None:
        super()._initialize_server()
        # In a session of its own: Ctrl-C in a terminal signals the whole process group, and tritonserver would end
        # with requests in flight while this process still wants to drain.
        setsid = shutil.which("setsid")
        if setsid is None:
            raise StartupFault("the command setsid is missing; install util-linux")
        self._triton_server._server_path = Path(f"{setsid} {self._triton_server._server_path}")
        self._triton_server._record_logs = self._log.add
        _answer_streams_alike(self._workspace.path / "tritonserver" / "bin" / "tritonserver")

    def _run_server(self) -> None:
        super()._run_server()
        # PyTriton has its output read byte by byte, and each kept. Clients can make Triton print some hundred lines a
        # second; its threads would then wait for who reads them, and nobody be answered.
        output = self._triton_server._tritonserver_running_cmd.process._stdout_stream
        output.bufsize, output.save_data = _OUTPUT_BYTES, False

    def _on_tritonserver_exit(self, *arguments: Any) -> None:
        """Leave the end of tritonserver to `check_alive()`: PyTriton would end this process with success."""
        *_, self._exit_code = arguments
        self._has_ended.set()

    def _exit(self) -> str:
        """How tritonserver ended, as soon as that is known, and what it said last."""
        self._has_ended.wait(_ANSWER_SECONDS)
        code = self._exit_code
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"{how}; {self._log.last_words}"

    def _offer_libpython(self) -> None:
        folder = self._workspace.path / "libpython"
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        link_libpython(Path(get_stub_path(version)), folder)
        os.environ["LD_LIBRARY_PATH"] = ":".join(filter(None, (str(folder), _LIBRARY_PATH)))

    def _tell_largest_tensor(self) -> None:
        """Tell `no_huge_tensors.c` how many bytes the numbers of one input may have: as many as in a full batch."""
        sizes = [
            model.config.max_batch_size * math.prod(tensor.shape) * np.dtype(tensor.dtype).itemsize
            for model in self._model_manager.models
            for tensor in model.inputs
        ]
        os.environ["EMBED_LARGEST_TENSOR"] = str(max(sizes, default=0))

    def _offer_preload(self) -> Path | None:
        """Where the list of what is loaded first can name it, whose entries end at spaces and colons."""
        return self._preload and Path(shutil.copy(self._preload, self._workspace.path / "preload.so"))

    def _is_ready(self) -> bool:
        """Whether it is, and not another one, started at the same time, that has got its port."""
        return self._answers("ready", _ANSWER_SECONDS) and listens(self._living_processes(), self._http_port)

    def _answers(self, health: str, seconds: float) -> bool:
        """Whether tritonserver says within so many seconds that it is `live` or `ready`."""
        with contextlib.suppress(*_UNANSWERED):
            status, _ = self._http.get(f"/v2/health/{health}", seconds)
            return status == 200
        return False

    def _check_shared_memory(self) -> None:
        """Find out before Triton does, which says only that it failed to load its models."""
        needed, free = len(self._lanes) * _STUB_MEBIBYTES, shutil.disk_usage(SHARED_MEMORY).free // 2**20
        if free < needed:
            raise StartupFault(
                f"{SHARED_MEMORY} has {free} MiB free, the start takes {needed} and large images more;"
                " make it larger (of a container: --shm-size 1g) or --lanes fewer"
            )


def _answer_streams_alike(server: Path) -> None:
    """Make tritonserver's copy pass over the metadata `triton_grpc_error`.

    With it, an error ends a gRPC stream with its status, and the answers that come after it end tritonserver
    (segmentation fault). Without it each error is in the answer of its own request. Names of metadata have no capitals.
    """
    server.write_bytes(server.read_bytes().replace(b"\0triton_grpc_error\0", b"\0TRITON_GRPC_ERROR\0"))


def _is_shared_memory_scarce() -> bool:
    """Whether batches may fail because it cannot grow, which never reach a lane: Triton answers them itself."""
    usage = shutil.disk_usage(SHARED_MEMORY)
    return usage.used > usage.free


def find_library(name: str) -> Path | None:
    """A library that setup has made of the C files here (`pyproject.toml` says which); None where it could not."""
    return max(_HERE.glob(f"{name}*.so"), key=os.path.getmtime, default=None)


def _check_workspace(folder: Path) -> None:
    """Find out before Triton does, which says only what it could not do."""
    other, disk = "set TMPDIR to another folder", os.statvfs(folder)
    if not _USABLE_PATH.fullmatch(str(folder)):
        raise StartupFault(f"Triton cannot use {folder}; set TMPDIR to a path of letters, digits and /._+@=- alone")
    if disk.f_flag & os.ST_NOEXEC:
        raise StartupFault(f"{folder.parent} is mounted noexec, and Triton runs from there; {other}")
    if (free := disk.f_bavail * disk.f_frsize // 2**20) < _DISK_MEBIBYTES:
        raise StartupFault(
            f"{folder.parent} has {free} MiB free, the start takes {_DISK_MEBIBYTES}; make room, or {other}"
        )
    if not os.access("/tmp", os.W_OK | os.X_OK):
        raise StartupFault("Triton cannot write to /tmp, and has to wherever TMPDIR is (a container: --tmpfs /tmp)")


def _make_unloadable_model(folder: Path) -> None:
    """A model of no backend, unless it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config.pbtxt"
    if not config.exists():
        config.write_text(f'name: "{folder.name}" backend: "none"')
