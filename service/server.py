"""PyTriton around the pipeline: settings -> a running server -> a clean end.

Comes in: the settings. Goes out: a service on its ports until a signal ends it. It builds every other room and must not
look into images, tensors or requests.
"""

import contextlib
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from pytriton.model_config import DynamicBatcher, ModelConfig, QueuePolicy, Tensor
from pytriton.model_config.common import TimeoutAction
from pytriton.triton import TritonConfig

from service import __version__
from service.access import GrpcTls, bearer, check_tls, read_token
from service.assembly import build_pipelines, by_device, known_embedding, load_encoders
from service.canary import Canary
from service.cores import Cores
from service.encoder import Encoder
from service.endpoint import EmbedImage, EmbedPixelValues, Parameters
from service.errors import ServiceFailure, StartupFault
from service.heartbeat import Heartbeat
from service.local_client import LocalClient
from service.metrics import Metrics, metrics_endpoint
from service.pipeline import Pipeline
from service.ports import free_ports
from service.pytriton_compat.triton import Access, SupervisedTriton
from service.settings import Settings
from service.watchdog import Watchdog
from service.workspace import new_workspace

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_LOOK_SECONDS = 0.5
_IDLE_SECONDS = 5.0
_STUB_SPARE_BYTES = 2**28
_JSON_REQUEST = (
    '{"inputs":[{"name":"INPUT_IMAGE","shape":[1,1],"datatype":"BYTES","data":["&"]}],'
    '"parameters":{"base64_encoded":true}}'
)


def serve(settings: Settings) -> None:
    """Start, serve until SIGTERM or SIGINT, answer what is in flight, and leave nothing behind.

    Raises:
        StartupFault: the service cannot start; the message says what to change.
        ServiceFailure: a part of the running service has died, or accepted requests could not be answered.
    """
    _check_ports_are_free(settings)
    access = _read_access(settings)
    cores, metrics = Cores(settings.cpu_threads), Metrics()
    preprocessor, encoders, digest = load_encoders(settings, cores, metrics)
    facts = _facts(settings, encoders, digest)
    _introduce(encoders, facts, metrics)
    with contextlib.ExitStack() as stack:
        helpers = stack.enter_context(ThreadPoolExecutor(cores.count, thread_name_prefix="decode"))
        workspace = stack.enter_context(new_workspace())
        shutdown = _shutdown_on_signals()
        pipelines = build_pipelines(settings, preprocessor, encoders, cores, helpers, metrics)
        known = known_embedding(pipelines)
        http_port, metrics_port = free_ports(2, settings.ports.values())
        http = _http_address(settings, http_port)
        triton = _build_triton(settings, access, workspace, http, metrics_port)
        stack.callback(triton.stop)
        client = LocalClient(*http, bearer(access.token))
        heartbeat = Heartbeat(client, settings.model_alias, preprocessor.size)
        _bind_models(triton, settings, encoders, pipelines, metrics, facts | _defaults(settings), heartbeat.mark)
        if settings.metrics_port:
            own = LocalClient("127.0.0.1", metrics_port)
            stack.enter_context(metrics_endpoint(metrics, settings.host, settings.metrics_port, own, access.token))
        if triton.start(shutdown):
            _announce(settings, encoders[0], facts)
            images = _lanes(settings, encoders) * settings.max_batch_size
            canary = Canary(known, client, by_device(pipelines) if len(pipelines) > 1 else ())
            watchdog = Watchdog(triton, encoders, images, metrics, client, canary)
            _watch(watchdog, heartbeat, shutdown.wait)
            _wind_down(settings, triton, watchdog, heartbeat)
    logger.info("stopped")


def _check_ports_are_free(settings: Settings) -> None:
    """Triton itself notices a taken port only after two minutes."""
    for name, port in settings.ports.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((settings.host, port))
            except OSError as error:
                option = name.replace("_", "-")
                raise StartupFault(
                    f"cannot listen on {settings.host}:{port} ({error.strerror}); change --host or --{option}"
                ) from error


def _read_access(settings: Settings) -> Access:
    token, admin_token, tls = None, None, None
    if settings.access_token_file:
        token = read_token(settings.access_token_file, "access_token_file")
    if settings.admin_token_file:
        admin_token = read_token(settings.admin_token_file, "admin_token_file")
    if settings.grpc_tls_cert and settings.grpc_tls_key:
        tls = GrpcTls(settings.grpc_tls_cert, settings.grpc_tls_key, settings.grpc_tls_client_ca)
        check_tls(tls)
    return Access(token, admin_token, tls)


def _facts(settings: Settings, encoders: Sequence[Encoder], digest: str) -> dict[str, str]:
    """What this service is, for whoever compares it with others; of a checkpoint's folder only the name."""
    folder = Path(settings.checkpoint)
    return {
        "version": __version__,
        "checkpoint": folder.resolve().name if folder.is_dir() else settings.checkpoint,
        "revision": settings.revision or "",
        "dtype": str(encoders[0].dtype).removeprefix("torch."),
        "device": ", ".join(str(encoder.device) for encoder in encoders),
        "fingerprint": digest,
    }


def _defaults(settings: Settings) -> dict[str, str]:
    """What becomes of requests without parameters, for clients that send none."""
    names = ("default_base64_encoded", "default_normalize")
    return {name: str(getattr(settings, name)).lower() for name in names}


def _introduce(encoders: Sequence[Encoder], facts: Mapping[str, str], metrics: Metrics) -> None:
    """Tell the metrics what they are of."""
    metrics.serves(**facts)
    for encoder in encoders:
        if encoder.device.type == "cuda":  # a CPU keeps no such account; there the process' memory tells
            metrics.watch_memory(str(encoder.device), encoder.held_bytes)


def _shutdown_on_signals() -> threading.Event:
    """An event that SIGTERM or SIGINT sets; a second one ends the service where it is."""
    shutdown = threading.Event()

    def on_signal(*_: object) -> None:
        if shutdown.is_set():
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_IGN)
            raise ServiceFailure("stopped at once by a second signal: what was in flight is dropped")
        shutdown.set()

    for number in _SIGNALS:
        signal.signal(number, on_signal)
    return shutdown


def _http_address(settings: Settings, own_port: int) -> tuple[str, int]:
    """Where Triton listens for HTTP. Where it is off, the service itself still needs it, on loopback."""
    return (settings.host, settings.http_port) if settings.http_port else ("127.0.0.1", own_port)


def _build_triton(
    settings: Settings, access: Access, workspace: Path, http: tuple[str, int], metrics_port: int
) -> SupervisedTriton:
    config = TritonConfig(
        allow_http=True,
        allow_grpc=bool(settings.grpc_port),
        allow_metrics=bool(settings.metrics_port),
        http_address=http[0],
        grpc_address=settings.host,
        metrics_address="127.0.0.1",
        http_port=http[1],
        grpc_port=settings.grpc_port or None,
        metrics_port=metrics_port,
        # By then everything is answered; it only bounds how long idle keep-alive connections hold up the end.
        exit_timeout_secs=1,
    )
    # The largest batch of images that are let in, as base64 text.
    stub_bytes = settings.max_batch_size * settings.max_image_bytes * 4 // 3 + _STUB_SPARE_BYTES
    return SupervisedTriton(config, workspace, access, stub_bytes, verbose=settings.log_level == "debug")


def _bind_models(
    triton: SupervisedTriton,
    settings: Settings,
    encoders: Sequence[Encoder],
    pipelines: Sequence[Pipeline],
    metrics: Metrics,
    facts: Mapping[str, str],
    heartbeat: str,
) -> None:
    """`embed_image` in several lanes a device, and the PIXEL_VALUES model in one; both tell the facts to clients."""
    defaults = Parameters(settings.default_base64_encoded, settings.default_normalize, settings.model_alias)
    side, outputs = encoders[0].image_size, [Tensor(name="EMBEDDING", dtype=np.float32, shape=(encoders[0].dimension,))]
    lanes = _lanes(settings, encoders)
    config = _model_config(settings, lanes)
    triton.bind(
        settings.model_alias,
        [EmbedPixelValues(encoder, defaults, heartbeat) for encoder in encoders],
        [Tensor(name="PIXEL_VALUES", dtype=np.float32, shape=(3, side, side))],
        outputs,
        config=config,
        parameters=facts,
    )
    triton.bind(
        "embed_image",
        [EmbedImage(pipeline, defaults, metrics) for pipeline in pipelines for _ in range(lanes)],
        [Tensor(name="INPUT_IMAGE", dtype=np.bytes_, shape=(1,))],
        outputs,
        config=config,
        parameters=facts,
    )


def _model_config(settings: Settings, lanes: int) -> ModelConfig:
    return ModelConfig(
        max_batch_size=settings.max_batch_size,
        batcher=DynamicBatcher(
            max_queue_delay_microseconds=settings.max_queue_delay_us,
            # Or one lane would take nearly all that is waiting, and the others one tiny batch after another meanwhile.
            preferred_batch_size=sorted({-(-settings.max_batch_size // lanes), settings.max_batch_size}),
            # What is refused costs nothing; its client knows at once, and what is accepted is answered in time.
            default_queue_policy=QueuePolicy(
                TimeoutAction.REJECT, settings.queue_timeout_ms * 1000, True, settings.max_queue_size
            ),
        ),
    )


def _lanes(settings: Settings, encoders: Sequence[Encoder]) -> int:
    """Batches in the works at a time on each device."""
    return settings.lanes or encoders[0].lanes


def _announce(settings: Settings, encoder: Encoder, facts: Mapping[str, str]) -> None:
    logger.info(
        "ready: embed_image and %s serve checkpoint %s (%d pixels, %d dimensions) on %s in %s, fingerprint %s",
        settings.model_alias,
        facts["checkpoint"],
        encoder.image_size,
        encoder.dimension,
        facts["device"],
        facts["dtype"],
        facts["fingerprint"],
        extra=facts,
    )
    names = {"http_port": "HTTP", "grpc_port": "gRPC", "metrics_port": "metrics"}
    for name, port in settings.ports.items():
        logger.info("%s on %s:%d", names[name], settings.host, port)
    if settings.http_port and not settings.access_token_file:
        logger.info(
            "try: base64 -w0 photo.jpg | sed 's/.*/%s/' | curl -s %s -d @- http://%s:%d/v2/models/embed_image/infer",
            _JSON_REQUEST,
            "-H 'Content-Type: application/json'",
            "127.0.0.1" if settings.host == "0.0.0.0" else settings.host,
            settings.http_port,
        )


def _watch(watchdog: Watchdog, heartbeat: Heartbeat, is_over: Callable[[float], bool]) -> None:
    """Look after the service until `is_over`, which waits so many seconds, says so.

    Raises:
        ServiceFailure: the service can answer no more.
    """
    while not is_over(_LOOK_SECONDS):
        watchdog.look()
        heartbeat.send()


def _wind_down(settings: Settings, triton: SupervisedTriton, watchdog: Watchdog, heartbeat: Heartbeat) -> None:
    """Look not ready, take requests until the grace is over, and answer all that is accepted.

    Raises:
        ServiceFailure: the service can answer no more, or not everything in time.
    """
    logger.info("stopping: it does not look ready any more; what is accepted will be answered")
    triton.report_not_ready()
    _watch(watchdog, heartbeat, _grace(settings.shutdown_grace_s))
    triton.drain(_IDLE_SECONDS + settings.max_queue_delay_us / 1e6)


def _grace(seconds: float) -> Callable[[float], bool]:
    """Is over after so many seconds."""
    end = time.monotonic() + seconds

    def is_over(wait_seconds: float) -> bool:
        time.sleep(max(0.0, min(wait_seconds, end - time.monotonic())))
        return time.monotonic() >= end

    return is_over
