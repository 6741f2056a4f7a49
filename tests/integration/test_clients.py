"""Every client style gets the reference's embeddings, in the order sent."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
import requests
import tritonclient.grpc
from PIL import Image

from perf.embeddings import cosines
from service.client.command import main as embed_many
from tests.integration import reference
from tests.integration.clients import (
    EMBED_BY,
    base64_text,
    embed_json,
    embed_raw,
    post_json,
    post_raw,
    read_raw_answer,
)
from tests.integration.reference import photographs
from tests.integration.service_process import ServiceProcess, wait_for


@pytest.mark.parametrize("style", EMBED_BY)
def test_every_client_gets_the_reference_embeddings_in_order(running: ServiceProcess, style: str) -> None:
    images = [*photographs(), photographs()[0]]
    embeddings = EMBED_BY[style](running, images)
    assert embeddings.dtype == np.float32
    assert cosines(embeddings, reference.embed(images)).min() > 0.99999
    assert cosines(embeddings[:1], embeddings[1:2]).max() < 0.999, "other images, other embeddings"


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_the_command_for_many_images_gets_them_too_and_names_what_failed(
    running: ServiceProcess, tmp_path: Path, scheme: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "images", tmp_path / "out.npy"
    folder.mkdir()
    for number, photograph in enumerate(photographs()):
        (folder / f"{number}.jpg").write_bytes(photograph)
    (folder / "empty.jpg").touch()
    port = running.http_port if scheme == "http" else running.grpc_port
    arguments = ["embed", str(folder), "--url", f"{scheme}://127.0.0.1:{port}", "--out", str(out)]
    assert embed_many(arguments) == 1
    assert "  empty_input: 1\n    empty.jpg: " in capsys.readouterr().err
    names = Path(f"{out}.ids.txt").read_text().splitlines()
    expected = reference.embed([(folder / name).read_bytes() for name in names])
    assert len(names) == len(photographs()) and cosines(np.load(out), expected).min() > 0.99999


def test_the_raw_answer_is_a_json_header_and_exactly_one_embedding(running: ServiceProcess) -> None:
    response = post_raw(running, photographs()[0])
    header_length = int(response.headers["Inference-Header-Content-Length"])
    dimension = requests.get(f"{running.url}/v2/models/embed_image", timeout=30).json()["outputs"][0]["shape"][1]
    assert len(response.content) - header_length == 4 * dimension
    assert read_raw_answer(response).shape == (1, dimension)


def test_normalize_gives_unit_norms_and_changes_nothing_else(running: ServiceProcess) -> None:
    texts = [base64_text(image) for image in photographs()]
    response = post_json(running, texts, {"base64_encoded": True, "normalize": True, "embed_model": "siglip"})
    (output,) = response.json()["outputs"]
    normalized = np.array(output["data"], np.float32).reshape(output["shape"])
    plain = embed_raw(running, photographs())
    np.testing.assert_allclose(np.linalg.norm(normalized, axis=1), 1.0, rtol=1e-5)
    assert np.abs(np.linalg.norm(plain, axis=1) - 1).min() > 0.01
    assert cosines(normalized, plain).min() > 0.99999


def test_prepared_pixel_values_give_the_same_embeddings(running: ServiceProcess) -> None:
    drawn = Image.new("RGB", (300, 200), "orange")
    values = reference.pixel_values([drawn, drawn.rotate(45)]).astype(np.float32)
    infer_input = tritonclient.grpc.InferInput("PIXEL_VALUES", list(values.shape), "FP32")
    infer_input.set_data_from_numpy(values)
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{running.grpc_port}") as client:
        embeddings = client.infer("siglip", [infer_input]).as_numpy("EMBEDDING")
    encoded = [_png(drawn), _png(drawn.rotate(45))]
    assert cosines(embeddings, embed_json(running, encoded)).min() > 0.99999


def test_metadata_config_statistics_health_and_metrics(running: ServiceProcess) -> None:
    model = f"{running.url}/v2/models/embed_image"
    metadata = requests.get(model, timeout=30).json()
    assert metadata["versions"] == ["1"]
    assert metadata["inputs"] == [{"name": "INPUT_IMAGE", "datatype": "BYTES", "shape": [-1, 1]}]
    (output,) = metadata["outputs"]
    assert (output["name"], output["datatype"], output["shape"][0]) == ("EMBEDDING", "FP32", -1)
    config = requests.get(f"{model}/config", timeout=30).json()
    assert config["max_batch_size"] == 60 and "dynamic_batching" in config
    assert requests.get(f"{model}/stats", timeout=30).json()["model_stats"][0]["name"] == "embed_image"
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/embed_image/ready", "/v2/models/siglip/ready"):
        assert requests.get(running.url + path, timeout=30).status_code == 200
    metrics = running.metrics()
    assert 'nv_inference_request_success{model="embed_image",version="1"}' in metrics
    assert 'embed_images_total{code="ok"}' in metrics


def test_everyone_learns_what_is_served_and_nothing_of_the_server(running: ServiceProcess) -> None:
    """One fingerprint in the log, the metrics and both models' configuration, over HTTP and gRPC.

    The configuration also tells what is done with requests that have no parameters.
    """
    scrape = running.metrics()
    (line,) = [line for line in scrape.splitlines() if line.startswith("embed_service_info{")]
    facts = dict(re.findall(r'(\w+)="(.*?)"', line))
    assert {**facts, "fingerprint": ""} == {
        "version": "0.1.0", "checkpoint": "demo", "revision": "", "dtype": "float32", "device": "cpu",
        "fingerprint": "",
    }  # fmt: skip
    assert re.fullmatch("[0-9a-f]{16}", facts["fingerprint"])
    wait_for(lambda: f"in float32, fingerprint {facts['fingerprint']}" in running.output())
    told = {name: fact for name, fact in facts.items() if fact}
    told |= {"default_base64_encoded": "false", "default_normalize": "false"}
    for model in ("embed_image", "siglip"):
        url = f"{running.url}/v2/models/{model}"
        parameters = requests.get(f"{url}/config", timeout=30).json()["parameters"]
        assert {name: value["string_value"] for name, value in parameters.items()} == told
        with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{running.grpc_port}") as client:
            config = client.get_model_config(model).config
        assert {name: value.string_value for name, value in config.parameters.items()} == told
        answers = [requests.get(each, timeout=30).text for each in (url, f"{url}/config", f"{url}/stats")]
        assert not [answer for answer in (*answers, scrape) if str(running.temporary) in answer]


def test_the_statistics_of_siglip_move_without_clients(running: ServiceProcess) -> None:
    """perf_analyzer's --bls-composing=siglip gives up on a model that serves nothing."""

    def served() -> int:
        (statistics,) = requests.get(f"{running.url}/v2/models/siglip/stats", timeout=30).json()["model_stats"]
        return int(statistics["inference_stats"]["queue"]["count"])

    before = served()
    wait_for(lambda: served() >= before + 2)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
