"""PyTriton around the pipeline: settings -> a running server -> a clean end.

Comes in: the settings. Goes out: a service on its ports until a signal ends it. It builds every other room and must not
look into images, tensors or requests.
"""

import contextlib
import logging
import secrets
import signal
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from service import __version__
from service.access import Access, GrpcTls, check_tls, read_token
from service.assembly import build_pipelines, known_embedding, load_encoders
from service.cores import Cores
from service.errors import ServiceFailure, StartupFault
from service.front_end import Parts, serve_by_triton
from service.metrics import Metrics
from service.metrics_endpoint import metrics_endpoint
from service.model.encoder import Encoder
from service.process.local_client import LocalClient
from service.process.ports import check_ports_are_free, free_ports
from service.process.signals import Shutdown, ending_signals
from service.pytriton_compat.triton import TritonFailure
from service.settings import Settings

logger = logging.getLogger(__name__)

# Where more fail in that time, the process ends, for its supervisor and the alerts to take notice.
_MOST_RESTARTS = 5
_RESTARTS_SECONDS = 600.0
_PAUSE_SECONDS = 2.0
_START_SECONDS = 300.0
_RESTART_SECONDS = 60.0  # its files have been read before


def serve(settings: Settings) -> None:
    """Start, serve until a signal, answer what is in flight, and leave nothing behind.

    Raises:
        StartupFault: the service cannot start; the message says what to change.
        ServiceFailure: a part of the running service has failed for good, or accepted requests could not be answered.
    """
    access = _read_access(settings)
    cores, metrics = Cores(settings.cpu_threads), Metrics()
    preprocessor, encoders, digest = load_encoders(settings, cores, metrics)
    facts = _facts(settings, encoders, digest)
    _introduce(encoders, facts, metrics)
    pipelines = build_pipelines(settings, preprocessor, encoders, cores, metrics)
    shutdown = _shutdown_on_signals()
    known = known_embedding(pipelines)
    http_port, metrics_port = free_ports(2, settings.ports.values())
    # Where Triton's HTTP is off, the service itself still needs it, on loopback.
    http = (settings.host, settings.http_port) if settings.http_port else ("127.0.0.1", http_port)
    parts = Parts(settings, access, encoders, pipelines, known, metrics, facts, http, metrics_port)
    with contextlib.ExitStack() as stack:
        if settings.metrics_port:
            check_ports_are_free(settings.host, {"metrics_port": settings.metrics_port})  # another may have started
            own = LocalClient("127.0.0.1", metrics_port)
            stack.enter_context(metrics_endpoint(metrics, settings.host, settings.metrics_port, own, access.token))
        _serve(parts, shutdown)
    logger.info("stopped")


def _serve(parts: Parts, shutdown: threading.Event) -> None:
    """Until `shutdown`. A tritonserver that fails makes place for another: the encoders, which take long to load, stay.

    Raises:
        StartupFault: the first one cannot start.
        ServiceFailure: another part has failed, or one tritonserver after another.
    """
    failed_at = deque[float](maxlen=_MOST_RESTARTS)
    while True:
        try:
            return serve_by_triton(parts, shutdown, _RESTART_SECONDS if failed_at else _START_SECONDS)
        except TritonFailure as error:
            failure, pause = error, 0.0
        except (StartupFault, OSError) as error:
            if not failed_at:
                raise
            # What keeps another one from its start, as a full disk, may pass.
            failure, pause = TritonFailure(f"tritonserver could not be started: {error}"), _PAUSE_SECONDS
        are_many = len(failed_at) == _MOST_RESTARTS and time.monotonic() - failed_at[0] < _RESTARTS_SECONDS
        if shutdown.is_set() or are_many:
            raise failure
        failed_at.append(time.monotonic())
        logger.error("%s; starting it anew", failure)
        parts.metrics.triton_restarts.inc()
        if shutdown.wait(pause):
            return


def _read_access(settings: Settings) -> Access:
    token, admin_token, tls = None, None, None
    if settings.access_token_file:
        token = read_token(settings.access_token_file, "access_token_file")
    if settings.admin_token_file:
        admin_token = read_token(settings.admin_token_file, "admin_token_file")
    if settings.grpc_tls_cert and settings.grpc_tls_key:
        tls = GrpcTls(settings.grpc_tls_cert, settings.grpc_tls_key, settings.grpc_tls_client_ca)
        check_tls(tls)
    # Where Triton's HTTP is off, it is for the service itself alone.
    return Access(token, admin_token, tls, token or (None if settings.http_port else secrets.token_hex(32)))


def _facts(settings: Settings, encoders: Sequence[Encoder], digest: str) -> dict[str, str]:
    """What this service is, for whoever compares it with others; of a checkpoint's folder only the name."""
    folder = Path(settings.checkpoint)
    facts = {
        "version": __version__,
        "checkpoint": folder.resolve().name if folder.is_dir() else settings.checkpoint,
        "revision": settings.revision or "",
        "dtype": str(encoders[0].dtype).removeprefix("torch."),
        "device": ", ".join(str(encoder.device) for encoder in encoders),
        "fingerprint": digest,
    }
    # PyTriton can write nothing but ASCII, and a folder's name need not even be text.
    return {name: ascii(fact)[1:-1] for name, fact in facts.items()}


def _introduce(encoders: Sequence[Encoder], facts: dict[str, str], metrics: Metrics) -> None:
    """Put into the metrics what this service is, and how much of its devices' memory it holds."""
    metrics.service_info.info(facts)
    for encoder in encoders:
        if encoder.device.type == "cuda":  # a CPU keeps no such account; there the process' memory tells
            metrics.encoder_memory.labels(str(encoder.device)).set_function(encoder.held_bytes)


def _shutdown_on_signals() -> threading.Event:
    """An event that the first signal sets; a second one ends the service where it is.

    A second SIGHUP does not: the shell and the kernel both send one at a terminal's end.
    """
    shutdown, numbers = Shutdown(), ending_signals()

    def on_signal(number: int, _: object) -> None:
        if shutdown.is_set() and number != signal.SIGHUP:
            for each in numbers:
                signal.signal(each, signal.SIG_IGN)
            raise ServiceFailure("stopped at once by a second signal: what was in flight is dropped")
        shutdown.set()

    for number in numbers:
        signal.signal(number, on_signal)
    return shutdown
