"""One tritonserver, started by PyTriton 0.7.0 with what that lacks: its files, its arguments, its endpoints, its end.

Comes in: addresses, tokens, a folder for its files, and models. Goes out: its processes, what its endpoints answer, and
how it ended. It must not know of lanes, nor when it has to end.
"""

import atexit
import contextlib
import http.client
import logging
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig, TritonLifecyclePolicy, TritonSecurityConfig
from pytriton.utils.distribution import get_libs_path, get_stub_path

from service.access import Access
from service.errors import ServiceFailure
from service.process.local_client import LocalClient
from service.pytriton_compat import host
from service.pytriton_compat.command_line import overwrite_arguments
from service.pytriton_compat.libpython import link_libpython
from service.pytriton_compat.server_log import ServerLog
from service.pytriton_compat.server_processes import (
    environment,
    has_died,
    listens,
    process_group,
    process_tree,
    start,
)

logger = logging.getLogger(__name__)

_HERE = Path(__file__).parent
_STUB = "triton_python_b"  # so much of its name is left of one that has died
_STUB_MODULES = ("batch_wire.py", "pulse.py")  # that `stub_model.py` imports
_UNANSWERED = (OSError, http.client.HTTPException)
_ANSWER_SECONDS = 2.0
_ADMIN_SECONDS = 20.0
_WAITING = re.compile(rb"^nv_inference_pending_request_count\{.*\} (\d+)$", re.MULTILINE)
# Of a stub's shared memory, which then has room for two batches of photographs, the one before being let go of only
# while the next comes in. In PyTriton's steps of 1 MB it grows for many minutes.
_GROWTH_BYTES = 8 * 2**20
_ADMIN_ENDPOINTS = ("shared-memory", "model-repository", "trace", "logging")
_USER_ENDPOINTS = "inference,statistics"
# Bytes that tritonserver has once, and what its copy has in their place.
_CHANGES = (
    # With this metadata, an error ends a gRPC stream with its status, and the answers that come after it end
    # tritonserver (segmentation fault). Without it each error is in the answer of its own request. Names of metadata
    # have no capitals.
    (b"\0triton_grpc_error\0", b"\0TRITON_GRPC_ERROR\0"),
    # Where a gRPC call is cancelled, or its deadline is over, just when its answer comes, who has the answer and who
    # hears of the end both release the call, and tritonserver ends (abort). So in
    # `ModelInferHandler::InferResponseComplete` a jump is taken always (`je` becomes `nop; jmp`): to where the call
    # has not ended, and is released by the other one alone. gRPC drops such an answer itself.
    (bytes.fromhex("4180bd6001000000 0f84bb020000 498b7d10"), bytes.fromhex("4180bd6001000000 90e9bb020000 498b7d10")),
    # Where it is over when its answer has been sent already, as that of a refused request, nobody releases it: with the
    # images in its message it stays for good. So in `Context::HandleCancellation` not only calls whose end was passed
    # on (their step is 8 or 9) are released, but also finished ones (2): of a mask the bit of the step is tested.
    (
        bytes.fromhex("488d0d932cbc00 8b4020 8b4904 8d50f8 83fa01 0f8657010000 85c9 7525"),
        bytes.fromhex("488d0d932cbc00 8b4020 b904030000 0fa3c1 0f8258010000 9090909090"),
    ),
)


class Tritonserver(Triton):  # type: ignore[misc]
    """PyTriton's `Triton`, of which only the preparation of files and arguments is used.

    Attributes:
        folder: where its files are.
        log: what it prints.
        model_names: the models that it serves, in the order in which they were added.
        model_store: the folder with a folder for each model.
    """

    def __init__(self, config: TritonConfig, folder: Path, access: Access, request_bytes: int, verbose: bool) -> None:
        """Prepare a server with its files in `folder`, whose name its segments of shared memory have in theirs.

        A request over HTTP may take `request_bytes` of memory. With `verbose` Triton's own information is logged, too,
        and not only its warnings and errors.

        Raises:
            StartupFault: Triton cannot use the folder, or /tmp.
        """
        host.check_folder(folder.resolve())  # as PyTriton gives it to Triton
        self.folder, self.log, self.model_names = folder, ServerLog(), list[str]()
        self._access, self._request_bytes = access, request_bytes
        self._http, self._http_port = LocalClient(config.http_address, config.http_port), config.http_port
        self._metrics = LocalClient(config.metrics_address, config.metrics_port) if config.allow_metrics else None
        self._process: subprocess.Popen[bytes] | None = None
        self._batch_strategy, self._preload = find_library("batchstrategy"), find_library("preload")
        if self._batch_strategy is None or self._preload is None:
            logger.warning(
                "no C compiler was there at setup: a request that lies about a length fails all that share its batch,"
                " clients may get bytes, or after a freeze embeddings, of others, and a few bytes can end tritonserver"
            )
        # A local model store makes tritonserver load every model before it listens: a port that answers is a service
        # that answers. PyTriton's default opens the ports first, and a server without models reports ready.
        super().__init__(
            config=config,
            workspace=folder / "triton",
            triton_lifecycle_policy=TritonLifecyclePolicy(launch_triton_on_startup=True, local_model_store=True),
            security_config=TritonSecurityConfig(access.admin_token, list(_ADMIN_ENDPOINTS)),
        )
        self.model_store: Path = self._workspace.model_store_path
        self._add_arguments(verbose)
        # PyTriton's end waits, for minutes where a part is dead or still starting, and swallows a signal's exception.
        atexit.unregister(self.stop)

    def _shm_prefix(self) -> str:
        """In PyTriton's place: what stubs that are killed leave is found by the folder's name."""
        return f"{self.folder.name}-"

    def _add_arguments(self, verbose: bool) -> None:
        arguments = self._triton_server_config
        arguments["log-info"] = verbose
        self._python_backend_config["shm-growth-byte-size"] = _GROWTH_BYTES
        arguments["backend_config"] = self._python_backend_config.to_list_args()
        tokens = {"http-restricted-api": self._access.http_token, "grpc-restricted-protocol": self._access.token}
        for name, token in tokens.items():
            if token:
                arguments[name] = [arguments[name], f"{_USER_ENDPOINTS}:authorization=Bearer {token}"]
        if tls := self._access.grpc_tls:
            arguments["grpc-use-ssl"], arguments["grpc-use-ssl-mutual"] = 1, int(tls.client_ca is not None)
            arguments["grpc-server-cert"], arguments["grpc-server-key"] = tls.certificate, tls.key
            arguments["grpc-root-cert"] = tls.client_ca

    def add_model(
        self,
        name: str,
        callables: Sequence[Callable[..., Any]],
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        config: ModelConfig,
        parameters: Mapping[str, str],
    ) -> Path:
        """Have it serve a model, with a stub for each callable; returns the folder that the stubs run in.

        Args:
            parameters: what the model's configuration tells clients beside its tensors.
        """
        self.bind(name, callables, inputs, outputs, config=config)
        *_, model = self._model_manager.models
        # Written again, with these parameters instead of a path that only PyTriton's own stubs need.
        model._get_triton_model_config().backend_parameters = dict(parameters)
        model.generate_model(self.model_store)
        folder = self.model_store / name / "1"
        shutil.copy(_HERE / "stub_model.py", folder / "model.py")
        for module in _STUB_MODULES:
            shutil.copy(_HERE / module, folder)
        if self._batch_strategy:
            shutil.copy(self._batch_strategy, folder / "batchstrategy.so")
        self.model_names.append(name)
        return folder

    def launch(self) -> None:
        """Start it.

        Raises:
            OSError: there is no room for a file.
            StartupFault: the system lacks a libpython, or allows too few open files.
        """
        server: Path = self._prepare_triton_inference_server() / "bin" / "tritonserver"
        _change_copy(server)
        libpython: Path = self._workspace.path / "libpython"
        link_libpython(Path(get_stub_path(f"{sys.version_info.major}.{sys.version_info.minor}")), libpython)
        # Where LD_PRELOAD can name it, whose entries end at spaces and colons.
        preload = self._preload and Path(shutil.copy(self._preload, self._workspace.path / "preload.so"))
        variables = environment(preload, libpython, get_libs_path(), self._largest_tensor(), self._request_bytes)
        # Or a stub is started and ended for each model, to ask it for what its configuration says already.
        command = [str(server), "--disable-auto-complete-config", *self._arguments()]
        self._process = start(command, variables)
        threading.Thread(target=self.log.follow, args=(self._process.stdout,), name="output", daemon=True).start()

    def _arguments(self) -> list[str]:
        return [
            f"--{name}={value}"
            for name, values in self._triton_server_config.server_args().items()
            for value in (values if isinstance(values, list | tuple) else [values])
            if value is not None
        ]

    def _largest_tensor(self) -> int:
        """The bytes that the numbers of one input may have: as many as in a full batch."""
        sizes = (
            model.config.max_batch_size * math.prod(tensor.shape) * np.dtype(tensor.dtype).itemsize
            for model in self._model_manager.models
            for tensor in model.inputs
        )
        return max(map(int, sizes))

    def hide_tokens(self) -> None:
        """Every user of a machine can read the command lines of its processes; this one has read its own by now."""
        tokens = [token for token in (self._access.http_token, self._security_config.access_token) if token]
        try:
            for process in self.processes()[:1]:
                overwrite_arguments(process.pid, tokens)
        except OSError as error:
            logger.warning("the tokens stay visible on tritonserver's command line: %s", error.strerror)

    def is_running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def processes(self) -> list[psutil.Process]:
        """It and all below it: its stubs, and the process that keeps their shared memory; none where it has ended."""
        return process_tree(self._process.pid) if self._process and self.is_running() else []

    def orphans(self) -> list[psutil.Process]:
        """What it has left behind: a stub that it was just starting when it was killed waits for it for ever."""
        return process_group(self._process.pid) if self._process else []

    def has_lost_a_stub(self) -> bool:
        """Whether one of its stubs has died."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name().startswith(_STUB) and has_died(process):
                    return True
        return False

    def reports(self, health: str, seconds: float = _ANSWER_SECONDS) -> bool:
        """Whether it says within so many seconds that it is `live` or `ready`."""
        with contextlib.suppress(*_UNANSWERED):
            status, _ = self._http.get(f"/v2/health/{health}", seconds)
            return status == 200
        return False

    def is_ready(self) -> bool:
        """Whether it is, and not another one, started at the same time, that has got its port."""
        return self.reports("ready") and listens(self.processes(), self._http_port)

    def waiting(self) -> int | None:
        """How many requests wait for a batch; None where its metrics do not tell."""
        with contextlib.suppress(*_UNANSWERED):
            if self._metrics:
                _, metrics = self._metrics.get("/metrics", _ANSWER_SECONDS)
                return sum(map(int, _WAITING.findall(metrics)))
        return None

    def ask_to(self, action: str, model: str) -> bool:
        """Have it `load` or `unload` a model, and return whether it did.

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

    def how_it_ended(self) -> str:
        """Its exit code or signal, as soon as that is known, and what it said last."""
        code = 0
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(_ANSWER_SECONDS) if self._process else 0
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"{how}; {self.log.last_words}"


def find_library(name: str) -> Path | None:
    """A library that setup has made of the C files here (`pyproject.toml` says which); None where it could not."""
    return max(_HERE.glob(f"{name}*.so"), key=os.path.getmtime, default=None)


def _change_copy(server: Path) -> None:
    """Have tritonserver's copy survive what clients may ask of gRPC."""
    program = server.read_bytes()
    for original, changed in _CHANGES:
        program = program.replace(original, changed)
    server.write_bytes(program)
