"""The ways in which users speak to the service, each as a function from encoded images to embeddings."""

import asyncio
import base64
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import requests
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from pytriton.client import ModelClient
from pytriton.client.warnings import NotSupportedTimeoutWarning

from tests.integration.service_process import ServiceProcess

Embeddings = npt.NDArray[np.float32]
Parameters = dict[str, Any]

# JSON that would end tritonserver.
HUGE_SHAPE = '{"inputs": [{"name": "INPUT_IMAGE", "shape": [1099511627776, 1], "datatype": "FP32", "data": []}]}'
RAW_HEADERS = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": "0"}


def read_raw_answer(response: requests.Response) -> Embeddings:
    """The embeddings of a raw or binary answer: a JSON header, then exactly N x D float32 values."""
    response.raise_for_status()
    header_length = int(response.headers["Inference-Header-Content-Length"])
    (output,) = json.loads(response.content[:header_length])["outputs"]
    values = np.frombuffer(response.content[header_length:], np.float32)
    assert output["name"] == "EMBEDDING"
    return values.reshape(output["shape"])


def post_raw(service: ServiceProcess, image: bytes) -> requests.Response:
    """The ancestor's raw form: the body is the image, and nothing else."""
    return requests.post(service.infer_url, data=image, headers=RAW_HEADERS, timeout=60)


def post_json(service: ServiceProcess, rows: Sequence[str], parameters: Parameters | None = None) -> requests.Response:
    """The ancestor's JSON form; `rows` are texts."""
    body: dict[str, Any] = {
        "inputs": [{"name": "INPUT_IMAGE", "shape": [len(rows), 1], "datatype": "BYTES", "data": list(rows)}]
    }
    if parameters is not None:
        body["parameters"] = parameters
    return requests.post(service.infer_url, json=body, timeout=60)


def base64_text(image: bytes) -> str:
    """An image as the base64 text of JSON requests."""
    return base64.b64encode(image).decode()


def embed_raw(service: ServiceProcess, images: Sequence[bytes]) -> Embeddings:
    """One raw POST an image."""
    return np.concatenate([read_raw_answer(post_raw(service, image)) for image in images])


def embed_json(service: ServiceProcess, images: Sequence[bytes]) -> Embeddings:
    """All images as rows of one base64 JSON request."""
    response = post_json(service, [base64_text(image) for image in images], {"base64_encoded": True})
    response.raise_for_status()
    (output,) = response.json()["outputs"]
    return np.array(output["data"], np.float32).reshape(output["shape"])


def _tensor(images: Sequence[bytes]) -> npt.NDArray[np.object_]:
    return np.array(images, np.object_).reshape(-1, 1)


def triton_input(module: Any, images: Sequence[bytes]) -> Any:
    """INPUT_IMAGE with one row an image, for `module`, which is tritonclient.http or tritonclient.grpc."""
    tensor = _tensor(images)
    infer_input = module.InferInput("INPUT_IMAGE", list(tensor.shape), "BYTES")
    infer_input.set_data_from_numpy(tensor)
    return infer_input


def _embed_triton(module: Any, port: int, images: Sequence[bytes]) -> Embeddings:
    with module.InferenceServerClient(f"127.0.0.1:{port}") as client:
        result: Embeddings = client.infer("embed_image", [triton_input(module, images)]).as_numpy("EMBEDDING")
        return result


def _embed_triton_async(module: Any, port: int, images: Sequence[bytes]) -> Embeddings:
    async def embed() -> Embeddings:
        async with module.aio.InferenceServerClient(f"127.0.0.1:{port}") as client:
            calls = [client.infer("embed_image", [triton_input(module, [image])]) for image in images]
            return np.concatenate([result.as_numpy("EMBEDDING") for result in await asyncio.gather(*calls)])

    return asyncio.run(embed())


def embed_triton_http(service: ServiceProcess, images: Sequence[bytes]) -> Embeddings:
    """tritonclient over HTTP, binary tensor data both ways."""
    return _embed_triton(tritonclient.http, service.http_port, images)


def embed_triton_grpc(service: ServiceProcess, images: Sequence[bytes]) -> Embeddings:
    """tritonclient over gRPC."""
    return _embed_triton(tritonclient.grpc, service.grpc_port, images)


def embed_triton_http_async(service: ServiceProcess, images: Sequence[bytes]) -> Embeddings:
    """tritonclient's asyncio client over HTTP, one request an image, all at once."""
    return _embed_triton_async(tritonclient.http, service.http_port, images)


def embed_triton_grpc_async(service: ServiceProcess, images: Sequence[bytes]) -> Embeddings:
    """tritonclient's asyncio client over gRPC, one request an image, all at once."""
    return _embed_triton_async(tritonclient.grpc, service.grpc_port, images)


def _embed_model_client(url: str, images: Sequence[bytes]) -> Embeddings:
    with ModelClient(url, "embed_image") as client:
        result: Embeddings = client.infer_batch(INPUT_IMAGE=_tensor(images))["EMBEDDING"]
        return result


def embed_model_client(service: ServiceProcess, images: Sequence[bytes]) -> Embeddings:
    """PyTriton's own client, given objects: numpy's fixed-width bytes lose trailing zeros."""
    return _embed_model_client(service.url, images)


def embed_model_client_grpc(service: ServiceProcess, images: Sequence[bytes]) -> Embeddings:
    """PyTriton's own client over gRPC, which reads the model's configuration before it asks."""
    with pytest.warns(NotSupportedTimeoutWarning):
        return _embed_model_client(f"grpc://127.0.0.1:{service.grpc_port}", images)


EMBED_BY: dict[str, Callable[[ServiceProcess, Sequence[bytes]], Embeddings]] = {
    "raw": embed_raw,
    "json": embed_json,
    "tritonclient http": embed_triton_http,
    "tritonclient grpc": embed_triton_grpc,
    "tritonclient http aio": embed_triton_http_async,
    "tritonclient grpc aio": embed_triton_grpc_async,
    "ModelClient": embed_model_client,
    "ModelClient grpc": embed_model_client_grpc,
}
