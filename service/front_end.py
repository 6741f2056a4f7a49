"""Triton's part of the service, from its start until a signal, or until it fails and another takes its place.

Comes in: what embeds, and where it is to be asked for. Goes out: a service on its ports that is watched and, at the
end, drained. It must not know how an image becomes an embedding.
"""

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pytriton.model_config import DynamicBatcher, ModelConfig, QueuePolicy, Tensor
from pytriton.model_config.common import TimeoutAction
from pytriton.triton import TritonConfig

from service.access import Access, bearer
from service.assembly import by_device
from service.endpoint import Parameters, embed_image, embed_pixel_values
from service.health.canary import Canary
from service.health.statistics_request import StatisticsRequest
from service.health.watchdog import Watchdog
from service.metrics import Metrics
from service.model.encoder import Encoder
from service.pipeline import Embedding, Pipeline
from service.process.free_memory import FreeMemory
from service.process.local_client import LocalClient
from service.process.ports import check_ports_are_free
from service.process.workspace import new_workspace
from service.pytriton_compat.triton import SupervisedTriton
from service.pytriton_compat.tritonserver import Tritonserver
from service.settings import Settings

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.5
_IDLE_SECONDS = 8.0  # a stub that hangs goes unnoticed for six
_SPARE_BYTES = 2**28
_NUMBER_CHARACTERS = 24  # that one takes in JSON, with what is between two
_JSON_REQUEST = (
    '{"inputs":[{"name":"INPUT_IMAGE","shape":[1,1],"datatype":"BYTES","data":["&"]}],'
    '"parameters":{"base64_encoded":true}}'
)


class Parts(NamedTuple):
    """What outlives a tritonserver, of encoders and pipelines one a device."""

    settings: Settings
    access: Access
    encoders: Sequence[Encoder]
    pipelines: Sequence[Pipeline]
    known: Embedding  # float32 `[D]`, of the canary's image
    metrics: Metrics
    facts: Mapping[str, str]  # what the service is, told to clients in the models' configuration
    http: tuple[str, int]  # the address where Triton listens for HTTP
    metrics_port: int  # of the loopback interface, where Triton's own measurements are


def serve_by_triton(parts: Parts, shutdown: threading.Event, start_seconds: float) -> None:
    """Start a tritonserver within so many seconds, serve until `shutdown`, and answer what is in flight.

    Raises:
        StartupFault: it cannot start.
        TritonFailure: it has failed; nothing of it is left.
        ServiceFailure: another part has failed.
    """
    # Triton itself notices a taken port only after two minutes. That of the metrics is taken: by the service itself.
    front_ports = {name: port for name, port in parts.settings.ports.items() if name != "metrics_port"}
    check_ports_are_free(parts.settings.host, front_ports)
    client = LocalClient(*parts.http, bearer(parts.access.http_token))
    statistics_request = StatisticsRequest(client, parts.settings.model_alias, parts.encoders[0].image_size)
    with contextlib.ExitStack() as stack:
        triton = _build_triton(parts, stack.enter_context(new_workspace()))
        stack.callback(triton.stop)
        _bind_models(triton, parts, statistics_request.mark)
        if not triton.start(shutdown, start_seconds):
            return
        _announce(parts)
        images = _lanes(parts) * parts.settings.max_batch_size
        canary = Canary(parts.known, client, by_device(parts.pipelines))
        watchdog = Watchdog(triton, parts.encoders, images, parts.metrics, client, canary)
        free_memory = FreeMemory(partial(triton.batches, "embed_image"), partial(triton.is_working, "embed_image"))
        looks = (watchdog.look, statistics_request.send, free_memory.look)
        _watch(looks, shutdown)
        _wind_down(parts, triton, looks)


def _build_triton(parts: Parts, workspace: Path) -> SupervisedTriton:
    settings = parts.settings
    config = TritonConfig(
        allow_http=True,
        allow_grpc=bool(settings.grpc_port),
        allow_metrics=bool(settings.metrics_port),
        http_address=parts.http[0],
        grpc_address=settings.host,
        metrics_address="127.0.0.1",
        http_port=parts.http[1],
        grpc_port=settings.grpc_port or None,
        # Messages are not kept for the next ones to use their memory: large ones would stay for good.
        grpc_infer_allocation_pool_size=0,
        metrics_port=parts.metrics_port,
        # By then everything is answered; it only bounds how long idle keep-alive connections hold up the end.
        exit_timeout_secs=1,
    )
    request_bytes = _batch_bytes(parts, _NUMBER_CHARACTERS)
    server = Tritonserver(config, workspace, parts.access, request_bytes, verbose=settings.log_level == "debug")
    return SupervisedTriton(server, _batch_bytes(parts, np.dtype(np.float32).itemsize))


def _batch_bytes(parts: Parts, number_bytes: int) -> int:
    """What the largest batch takes: of images as base64, or of pixels whose numbers take so many bytes each."""
    text, pixels = parts.settings.max_image_bytes * 4 // 3, number_bytes * 3 * parts.encoders[0].image_size ** 2
    return parts.settings.max_batch_size * max(text, pixels) + _SPARE_BYTES


def _bind_models(triton: SupervisedTriton, parts: Parts, own_mark: str) -> None:
    """`embed_image` in several lanes a device, and the PIXEL_VALUES model in one; both tell the facts to clients.

    `own_mark` is the `embed_model` of the service's own requests to the latter.
    """
    settings, encoders = parts.settings, parts.encoders
    defaults = Parameters(settings.default_base64_encoded, settings.default_normalize, settings.model_alias)
    side, outputs = encoders[0].image_size, [Tensor(name="EMBEDDING", dtype=np.float32, shape=(encoders[0].dimension,))]
    lanes = _lanes(parts)
    config = _model_config(settings, lanes)
    # What becomes of requests without parameters, for clients that send none.
    told = {name: str(getattr(settings, name)).lower() for name in ("default_base64_encoded", "default_normalize")}
    # None that is empty: over gRPC, JSON leaves out its value, and PyTriton's own client breaks at that.
    facts = {name: fact for name, fact in {**parts.facts, **told}.items() if fact}
    triton.bind(
        settings.model_alias,
        [embed_pixel_values(encoder, defaults, own_mark) for encoder in encoders],
        [Tensor(name="PIXEL_VALUES", dtype=np.float32, shape=(3, side, side))],
        outputs,
        config=config,
        parameters=facts,
    )
    triton.bind(
        "embed_image",
        # Triton hands batches to lanes in turn: lanes that follow each other are on different devices.
        [embed_image(pipeline, defaults, parts.metrics) for _ in range(lanes) for pipeline in parts.pipelines],
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


def _lanes(parts: Parts) -> int:
    """Batches in the works at a time on each device."""
    return parts.settings.lanes or parts.encoders[0].lanes


def _announce(parts: Parts) -> None:
    settings, encoder, facts = parts.settings, parts.encoders[0], parts.facts
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


def _watch(looks: Sequence[Callable[[], None]], over: threading.Event, seconds: float = math.inf) -> None:
    """Look after the service again and again until it is `over`, for so many seconds at most.

    Raises:
        ServiceFailure: the service can answer no more.
    """
    end = time.monotonic() + seconds
    while not over.wait(max(0.0, min(_LOOK_SECONDS, end - time.monotonic()))) and time.monotonic() < end:
        for look in looks:
            look()


def _wind_down(parts: Parts, triton: SupervisedTriton, looks: Sequence[Callable[[], None]]) -> None:
    """Look not ready, take requests until the grace is over, and answer all that is accepted.

    Raises:
        ServiceFailure: the service can answer no more, or not everything in time.
    """
    logger.info("stopping: it does not look ready any more; what is accepted will be answered")
    triton.report_not_ready()
    _watch(looks, threading.Event(), parts.settings.shutdown_grace_s)
    triton.drain(_IDLE_SECONDS + parts.settings.max_queue_delay_us / 1e6)
