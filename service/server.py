"""PyTriton around the pipeline: settings -> a running server -> a clean end.

Comes in: the settings. Goes out: a service on its ports until a signal ends it. It builds every other room and must not
look into images, tensors or requests.
"""

import contextlib
import logging
import signal
import socket
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from pytriton.client import ModelClient
from pytriton.client.exceptions import PyTritonClientError, PyTritonClientInferenceServerError
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import TritonConfig

from service.cache import EmbeddingCache
from service.cores import Cores
from service.decode import Decoder
from service.encoder import Encoder, load_model, resolve_devices, resolve_dtype
from service.endpoint import EmbedImage, EmbedPixelValues, Parameters
from service.errors import StartupFault
from service.metrics import Metrics, metrics_endpoint
from service.pipeline import Pipeline
from service.ports import free_ports
from service.preprocess import Preprocessor
from service.pytriton_compat.triton import SupervisedTriton
from service.settings import Settings

logger = logging.getLogger(__name__)

_DEMO_CHECKPOINT = Path(__file__).parent / "demo" / "checkpoint"
_HEARTBEAT_SECONDS = 0.5
_HEARTBEAT_TIMEOUT_SECONDS = 5.0
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
    cores = Cores(settings.cpu_threads)
    preprocessor, encoders = _load_checkpoint(settings, cores)
    with contextlib.ExitStack() as stack:
        helpers = stack.enter_context(ThreadPoolExecutor(cores.count, thread_name_prefix="decode"))
        workspace = stack.enter_context(tempfile.TemporaryDirectory(prefix="embed-"))
        shutdown = _shutdown_on_signals()
        metrics, (triton_metrics_port,) = Metrics(), free_ports(1)
        pipelines = _build_pipelines(settings, preprocessor, encoders, cores, helpers, metrics)
        triton = _build_triton(settings, Path(workspace) / "triton", triton_metrics_port)
        stack.callback(triton.stop)
        _bind_models(triton, settings, encoders, pipelines)
        if settings.metrics_port:
            url = f"http://127.0.0.1:{triton_metrics_port}/metrics"
            stack.enter_context(metrics_endpoint(metrics, settings.host, settings.metrics_port, url))
        if triton.start(shutdown):
            _announce(settings, encoders)
            _watch(triton, shutdown, settings, preprocessor)
            logger.info("stopping: new requests are refused, accepted ones are answered")
            triton.drain()
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


def _load_checkpoint(settings: Settings, cores: Cores) -> tuple[Preprocessor, list[Encoder]]:
    """The checkpoint's preprocessor, and one warm encoder a device."""
    checkpoint = settings.checkpoint
    if checkpoint == "demo":
        checkpoint = str(_DEMO_CHECKPOINT)
        logger.warning("serving the embedded demo checkpoint, which knows simple drawings and nothing of photographs")
    devices = resolve_devices(settings.device)
    model = load_model(checkpoint, settings.revision, settings.random_weights)
    preprocessor = Preprocessor.from_pretrained(checkpoint, settings.revision, settings.exact_pixels)
    encoders = [
        Encoder(
            model,
            device,
            resolve_dtype(settings.dtype, device),
            preprocessor.scale,
            preprocessor.offset,
            cores,
        )
        for device in devices
    ]
    if encoders[0].image_size != preprocessor.size:
        raise StartupFault(
            f"checkpoint {checkpoint!r} contradicts itself: its model reads images of {encoders[0].image_size} pixels,"
            f" its image processor makes {preprocessor.size}"
        )
    for encoder in encoders:
        encoder.warm_up(settings.max_batch_size)
    return preprocessor, encoders


def _shutdown_on_signals() -> threading.Event:
    """An event that SIGTERM or SIGINT sets."""
    shutdown = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: shutdown.set())
    return shutdown


def _build_pipelines(
    settings: Settings,
    preprocessor: Preprocessor,
    encoders: Sequence[Encoder],
    cores: Cores,
    helpers: Executor,
    metrics: Metrics,
) -> list[Pipeline]:
    """A pipeline for each encoder; they share the cores and the cache."""
    decoder = Decoder(
        settings.max_image_bytes,
        settings.max_image_pixels,
        preprocessor.least_side,
        settings.exif_orientation,
        settings.background_rgb,
    )
    cache = EmbeddingCache(settings.cache_mb * 2**20) if settings.cache_mb else None
    return [Pipeline(decoder, preprocessor, encoder, cores, helpers, metrics, cache) for encoder in encoders]


def _build_triton(settings: Settings, workspace: Path, metrics_port: int) -> SupervisedTriton:
    config = TritonConfig(
        allow_http=bool(settings.http_port),
        allow_grpc=bool(settings.grpc_port),
        allow_metrics=bool(settings.metrics_port),
        http_address=settings.host,
        grpc_address=settings.host,
        metrics_address="127.0.0.1",
        http_port=settings.http_port or None,
        grpc_port=settings.grpc_port or None,
        metrics_port=metrics_port,
        # By then everything is answered; it only bounds how long idle keep-alive connections hold up the end.
        exit_timeout_secs=1,
    )
    # perf_analyzer reads the statistics.
    return SupervisedTriton(config, workspace, open_endpoints={"statistics"}, verbose=settings.log_level == "debug")


def _bind_models(
    triton: SupervisedTriton, settings: Settings, encoders: Sequence[Encoder], pipelines: Sequence[Pipeline]
) -> None:
    """`embed_image` in several lanes a device, and the PIXEL_VALUES model in one."""
    defaults = Parameters(settings.default_base64_encoded, settings.default_normalize, settings.model_alias)
    side, outputs = encoders[0].image_size, [Tensor(name="EMBEDDING", dtype=np.float32, shape=(encoders[0].dimension,))]
    lanes = settings.lanes or encoders[0].lanes
    config = ModelConfig(
        max_batch_size=settings.max_batch_size,
        batcher=DynamicBatcher(
            max_queue_delay_microseconds=settings.max_queue_delay_us,
            # Or one lane would take nearly all that is waiting, and the others one tiny batch after another meanwhile.
            preferred_batch_size=sorted({-(-settings.max_batch_size // lanes), settings.max_batch_size}),
        ),
    )
    triton.bind(
        settings.model_alias,
        [EmbedPixelValues(encoder, defaults) for encoder in encoders],
        [Tensor(name="PIXEL_VALUES", dtype=np.float32, shape=(3, side, side))],
        outputs,
        config=config,
    )
    triton.bind(
        "embed_image",
        [EmbedImage(pipeline, defaults) for pipeline in pipelines for _ in range(lanes)],
        [Tensor(name="INPUT_IMAGE", dtype=np.bytes_, shape=(1,))],
        outputs,
        config=config,
    )


def _announce(settings: Settings, encoders: Sequence[Encoder]) -> None:
    first = encoders[0]
    logger.info(
        "ready: embed_image and %s serve checkpoint %s (%d pixels, %d dimensions) on %s in %s",
        settings.model_alias,
        settings.checkpoint,
        first.image_size,
        first.dimension,
        ", ".join(str(encoder.device) for encoder in encoders),
        str(first.dtype).removeprefix("torch."),
    )
    names = {"http_port": "HTTP", "grpc_port": "gRPC", "metrics_port": "metrics"}
    for name, port in settings.ports.items():
        logger.info("%s on %s:%d", names[name], settings.host, port)
    if settings.http_port:
        logger.info(
            "try: base64 -w0 photo.jpg | sed 's/.*/%s/' | curl -s -d @- http://%s:%d/v2/models/embed_image/infer",
            _JSON_REQUEST,
            "127.0.0.1" if settings.host == "0.0.0.0" else settings.host,
            settings.http_port,
        )


def _watch(triton: SupervisedTriton, shutdown: threading.Event, settings: Settings, preprocessor: Preprocessor) -> None:
    """Return when a shutdown is asked for; until then look after the server's processes.

    The heartbeat is a request that the PIXEL_VALUES model refuses, so that it goes all the way without costing the
    encoder anything. It also keeps that model's statistics moving: `perf_analyzer --bls-composing=siglip` gives up on a
    composing model that serves nothing, and here nothing but such a request goes through it.

    Raises:
        ServiceFailure: a process of the server has died.
    """
    pixel_values = np.zeros((1, 3, preprocessor.size, preprocessor.size), dtype=np.float32)
    with ModelClient(triton.url, settings.model_alias, inference_timeout_s=_HEARTBEAT_TIMEOUT_SECONDS) as client:
        while not shutdown.wait(_HEARTBEAT_SECONDS):
            triton.check_alive()
            try:
                client.infer_batch(PIXEL_VALUES=pixel_values, parameters={"embed_model": "heartbeat"})
            except PyTritonClientInferenceServerError:
                continue
            except PyTritonClientError as error:
                logger.warning("no answer to a heartbeat: %s", error)
