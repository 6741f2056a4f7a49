"""The KServe tensor contract: requests -> rows -> responses.

Comes in: the requests of one dynamic batch, as a lane hands them over. Goes out: one response a request, an EMBEDDING
or a fault. The two inference callables live here; it alone knows which fault is which status of the protocol.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from service.errors import ClientFault, Fault, InternalFault, InvalidParameter, InvalidTensor, UnknownModel
from service.metrics import Metrics
from service.pipeline import Embedding, Pipeline, Row, finite_or
from service.pytriton_compat.lane import InferenceCallable, Request, Response

logger = logging.getLogger(__name__)

_MAX_ID_CHARACTERS = 128

PixelValues = npt.NDArray[np.float32]
R = TypeVar("R", Row, PixelValues)


class PixelValuesEncoder(Protocol):
    """What the `PIXEL_VALUES` model asks of `encoder.Encoder`."""

    image_size: int

    def encode_pixel_values(self, pixel_values: PixelValues) -> Embedding:
        """float32 pixel values `[N, 3, S, S]` -> float32 embeddings `[N, D]`."""


@dataclass(frozen=True)
class Parameters:
    """The parameters of one request; the instance that an endpoint holds has the defaults."""

    base64_encoded: bool  # every row of the request is base64 text
    normalize: bool  # divide each embedding by its L2 norm
    embed_model: str  # the name of the model that computes the embeddings

    def overridden_by(self, request: Request) -> "Parameters":
        """What the request asks for, these defaults where it says nothing.

        Raises:
            InvalidParameter: an unknown name, or a value of another type.
            UnknownModel: `embed_model` is not served here.
        """
        for name, value in request.parameters.items():
            if name not in vars(self):
                raise InvalidParameter(f"there is no parameter {name!r:.100}; known are {', '.join(vars(self))}")
            expected = type(vars(self)[name])
            if type(value) is not expected:
                raise InvalidParameter(f"{name} must be of type {expected.__name__}, not {value!r:.100}")
        merged: dict[str, Any] = {**vars(self), **request.parameters}
        if merged["embed_model"] != self.embed_model:
            raise UnknownModel(f"there is no model {merged['embed_model']!r:.100}; served: {self.embed_model}")
        return Parameters(**merged)


@dataclass(frozen=True)
class _Readable(Generic[R]):
    """The rows of one request that keeps the contract, and whether their embeddings are to be normalised."""

    rows: Sequence[R]
    normalize: bool


class _OwnRequest(UnknownModel):
    """The service's own request for the sake of statistics: it is meant to be refused, so its refusal is not logged."""


def embed_image(pipeline: Pipeline, defaults: Parameters, metrics: Metrics) -> InferenceCallable:
    """The inference callable of `embed_image`: INPUT_IMAGE BYTES `[-1, 1]` -> EMBEDDING FP32 `[-1, D]`."""

    def read(request: Request) -> _Readable[Row]:
        parameters = defaults.overridden_by(request)
        images = request.data["INPUT_IMAGE"]
        # Triton multiplies a shape in 32 bits, so that one which overflows passes its check and gets here.
        if images.ndim != 2 or images.shape[1] != 1 or not images.size:
            raise InvalidTensor(f"INPUT_IMAGE must have the shape [rows, 1], not {list(images.shape)}")
        return _Readable([Row(data, parameters.base64_encoded) for data in images[:, 0]], parameters.normalize)

    return lambda requests: _answer(requests, read, pipeline.embed, metrics.answered)


def embed_pixel_values(encoder: PixelValuesEncoder, defaults: Parameters, own_mark: str) -> InferenceCallable:
    """The inference callable for prepared pixels: PIXEL_VALUES FP32 `[-1, 3, S, S]` -> EMBEDDING FP32 `[-1, D]`.

    `own_mark` is the `embed_model` that the service's own requests ask for, and that no client can know.
    """
    side = encoder.image_size
    # Looked for in the embeddings, which are small and show it all: a NaN, an infinity, a number that overflows.
    not_finite = InvalidTensor("PIXEL_VALUES must be finite, and small enough for an embedding that is finite, too")

    def read(request: Request) -> _Readable[PixelValues]:
        if request.parameters.get("embed_model") == own_mark:
            raise _OwnRequest("it is the service's own")
        parameters = defaults.overridden_by(request)
        pixel_values = request.data["PIXEL_VALUES"]
        if pixel_values.ndim != 4 or pixel_values.shape[1:] != (3, side, side) or not pixel_values.size:
            raise InvalidTensor(
                f"PIXEL_VALUES must have the shape [rows, 3, {side}, {side}], not {list(pixel_values.shape)}"
            )
        return _Readable(list(pixel_values), parameters.normalize)

    def embed(rows: Sequence[PixelValues]) -> list[Embedding | Fault]:
        return finite_or(not_finite, encoder.encode_pixel_values(np.stack(rows)))

    return lambda requests: _answer(requests, read, embed, lambda code: None)


def _answer(
    requests: Sequence[Request],
    read: Callable[[Request], _Readable[R]],
    embed: Callable[[list[R]], Sequence[Embedding | Fault]],
    refused: Callable[[str], None],
) -> list[Response]:
    """Embed the rows of all readable requests as one batch; an unreadable request is answered with its own fault.

    `refused` is told the code of each fault that is no row's own.
    """
    readings: list[_Readable[R] | Fault]
    results: list[Embedding | Fault]
    try:
        readings = [_attempt(read, request) for request in requests]
        rows = [row for reading in readings if isinstance(reading, _Readable) for row in reading.rows]
        outcomes = iter(embed(rows) if rows else ())
        results = [_result(reading, outcomes) for reading in readings]
    except Exception:
        # A callable that raises would end its lane, and with it the service.
        logger.exception("a batch of %d requests failed", len(requests))
        fault = InternalFault("the request could not be answered")
        readings, results = [fault] * len(requests), [fault] * len(requests)
    for reading in readings:
        if isinstance(reading, Fault):
            refused(reading.code)
    return [_response(request, result) for request, result in zip(requests, results, strict=True)]


def _attempt(read: Callable[[Request], _Readable[R]], request: Request) -> _Readable[R] | Fault:
    try:
        return read(request)
    except Fault as fault:
        return fault.without_traceback()


def _result(reading: _Readable[R] | Fault, outcomes: Iterator[Embedding | Fault]) -> Embedding | Fault:
    """The embeddings of one request, float32 `[rows, D]`, or the fault that it is answered with."""
    if isinstance(reading, Fault):
        return reading
    own = list(islice(outcomes, len(reading.rows)))
    for row, outcome in enumerate(own):
        if isinstance(outcome, Fault):
            return outcome.in_row(row) if len(own) > 1 else outcome
    embeddings: Embedding = np.array(own)
    return _normalized(embeddings) if reading.normalize else embeddings


def _normalized(embeddings: Embedding) -> Embedding:
    """Rows divided by their L2 norm; float32 `[N, D]` both ways."""
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    normalized: Embedding = embeddings / np.maximum(norms, np.finfo(np.float32).tiny)
    return normalized


def _response(request: Request, result: Embedding | Fault) -> Response:
    if not isinstance(result, Fault):
        return Response({"EMBEDDING": result})
    if not isinstance(result, _OwnRequest):
        names = {"request_id": request.id[:_MAX_ID_CHARACTERS]} if request.id else {}
        logger.info("%s", result, extra={"code": result.code, **names})
    status = "INVALID_ARG" if isinstance(result, ClientFault) else "INTERNAL"
    return Response({}, (status, str(result)))
