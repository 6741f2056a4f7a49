"""The same bits as on one core, whatever the service is set to for speed."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from service.bulk.embedder import Embedder
from service.cores import Cores
from service.settings import load_settings
from tests.integration import reference
from tests.integration.clients import base64_text, embed_raw, post_json
from tests.integration.reference import Embeddings, photographs
from tests.integration.service_process import ServiceProcess, service


def test_lanes_threads_and_cache_change_no_bit_of_the_reference_s_numbers(tmp_path: Path) -> None:
    """One of the JPEGs is large enough for a reduced scale: with exact pixels its numbers, too, are the reference's."""
    images = [*photographs(), _enlarged(photographs()[0])]
    # Batches of one: a canary that joins an image would change its last bits.
    exact = ("--dtype", "float32", "--exact-pixels", "true", "--max-batch-size", "1")
    alone = Embedder(load_settings(exact), Cores(1))
    expected = np.stack([outcome for image in images for outcome in alone.embed([image])])  # type: ignore[misc]
    np.testing.assert_allclose(expected, reference.embed(images), atol=2e-5)
    with service(tmp_path, *exact, "--lanes", "3", "--cpu-threads", "2", "--cache-mb", "1") as wide:
        np.testing.assert_array_equal(embed_raw(wide, images), expected)
        assert _repeats(wide) == 0
        np.testing.assert_array_equal(_embed_base64(wide, images), expected)
        assert _repeats(wide) == len(images)


def _embed_base64(running: ServiceProcess, images: list[bytes]) -> Embeddings:
    answers = [post_json(running, [base64_text(image)], {"base64_encoded": True}).json() for image in images]
    return np.array([answer["outputs"][0]["data"] for answer in answers], np.float32)


def _repeats(running: ServiceProcess) -> float:
    (line,) = (line for line in running.metrics().splitlines() if line.startswith("embed_repeats_total "))
    return float(line.split()[1])


def _enlarged(jpeg: bytes) -> bytes:
    file = io.BytesIO()
    Image.open(io.BytesIO(jpeg)).resize((1203, 801)).save(file, "JPEG")
    return file.getvalue()
