"""One bad image costs nobody else anything, and its sender learns what to mend."""

import base64
import io
import queue
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
import tritonclient.grpc
from PIL import Image
from tritonclient.utils import InferenceServerException

from perf.embeddings import cosines
from tests.images import png_chunk, png_header
from tests.integration.clients import post_raw, read_raw_answer, triton_input
from tests.integration.reference import photographs
from tests.integration.service_process import ServiceProcess

FEW_PIXELS = png_chunk(b"IDAT", zlib.compress(bytes(1000)))
HOSTILE = {
    "empty": (b"", "empty_input"),
    "text": (b"this is no image, it is a sentence", "unsupported_format"),
    "pdf": (b"%PDF-1.7\n1 0 obj << /Type /Catalog >>", "unsupported_format"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10", "unsupported_format"),
    "base64 without saying so": (base64.b64encode(photographs()[0]), "unsupported_format"),
    "truncated": (photographs()[0][: len(photographs()[0]) // 2], "corrupt_image"),
    "header only": (photographs()[0][:40], "corrupt_image"),
    "too many bytes": (photographs()[0].ljust(32 * 2**20 + 1, b"\0"), "too_many_bytes"),
    "decompression bomb": (png_header(100_000, 100_000) + FEW_PIXELS, "too_many_pixels"),
    "just too many pixels": (png_header(10_000, 5_001) + FEW_PIXELS, "too_many_pixels"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_each_hostile_image_gets_its_code_over_http_and_grpc(running: ServiceProcess, name: str) -> None:
    image, code = HOSTILE[name]
    response = post_raw(running, image)
    assert response.status_code == 400
    message = response.json()["error"]
    assert message.startswith(f"{code}: ") and not any(each in message for each in ("\n", "/", "Traceback"))

    with (
        tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{running.grpc_port}") as client,
        pytest.raises(InferenceServerException) as caught,
    ):
        client.infer("embed_image", [triton_input(tritonclient.grpc, [image])])
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert caught.value.message() == message


def test_of_a_stream_that_asks_for_statuses_each_request_gets_its_own_answer(running: ServiceProcess) -> None:
    """By itself Triton ends the stream with the first error, and itself with the answer that comes after it."""
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    tritonserver = running.part("tritonserver").pid
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{running.grpc_port}") as client:
        client.start_stream(lambda result, error: answers.put((result, error)), headers={"triton_grpc_error": "true"})
        for image in (b"no image", photographs()[0]):
            client.async_stream_infer("embed_image", [triton_input(tritonclient.grpc, [image])])
        first, second = (answers.get(timeout=60) for _ in range(2))
    (failed, embedded) = (first, second) if first[1] else (second, first)
    assert str(failed[1].message()).startswith("unsupported_format: ")
    assert embedded[0].as_numpy("EMBEDDING").shape == (1, 128)
    assert running.part("tritonserver").pid == tritonserver


def test_hostile_neighbours_cost_good_images_nothing(running: ServiceProcess) -> None:
    """200 requests from 32 threads, every tenth hostile: all answered, each with what it gets alone."""
    good = [_variant(index) for index in range(8)]
    alone = [read_raw_answer(post_raw(running, image)) for image in good]
    hostile = [case for name, case in HOSTILE.items() if name != "too many bytes"]

    def send(index: int) -> str | None:
        """What is wrong with the answer, None where nothing is."""
        if index % 10 == 0:
            image, code = hostile[index // 10 % len(hostile)]
            response = post_raw(running, image)
            wrong = response.status_code != 400 or not response.json()["error"].startswith(f"{code}: ")
            return f"request {index}: {response.status_code} {response.text[:200]}, not {code}" if wrong else None
        response = post_raw(running, good[index % len(good)])
        if response.status_code != 200:
            return f"request {index}: {response.status_code} {response.text[:200]}"
        cosine = cosines(read_raw_answer(response), alone[index % len(good)]).min()
        return None if cosine > 0.9999 else f"request {index}: the embedding of another image (cosine {cosine:.4f})"

    before = _batches(running)
    with ThreadPoolExecutor(32) as threads:
        assert [problem for problem in threads.map(send, range(200)) if problem] == []
    assert max(_batches(running) - before) > 4, "the requests did share batches"


def _batches(running: ServiceProcess) -> Counter[int]:
    """How many batches of each size there were since the service started."""
    url = f"{running.url}/v2/models/embed_image/stats"
    (statistics,) = requests.get(url, timeout=30).json()["model_stats"]
    return Counter({each["batch_size"]: each["compute_infer"]["count"] for each in statistics["batch_stats"]})


def _variant(index: int) -> bytes:
    """Eight images that are clearly different from each other, as PNG."""
    image = Image.open(io.BytesIO(photographs()[index % 4]))
    buffer = io.BytesIO()
    (image if index < 4 else image.transpose(Image.Transpose.ROTATE_180)).save(buffer, "PNG")
    return buffer.getvalue()
