"""Calls over gRPC that their client gives up."""

import shutil
import subprocess
from pathlib import Path

import pytest
import tritonclient.grpc

from tests.integration.clients import triton_input
from tests.integration.reference import photographs
from tests.integration.service_process import service, wait_for


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_a_call_that_ends_just_when_its_answer_comes_does_no_harm(tmp_path: Path) -> None:
    """By itself Triton lets go of it twice, and ends."""
    library, held = tmp_path / "held_answer.so", tmp_path / "held"
    source = Path(__file__).with_name("held_answer.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True, timeout=60)
    images = [triton_input(tritonclient.grpc, photographs()[:1])]
    environment = {"LD_PRELOAD": str(library), "HELD_ANSWER": str(held)}
    with (
        service(tmp_path, environment=environment) as running,
        tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{running.grpc_port}") as client,
    ):
        family = running.family()
        call = client.async_infer("embed_image", images, lambda result, error: None, request_id="held")
        wait_for(held.exists)
        call.cancel()
        for _ in range(10):
            assert client.infer("embed_image", images).as_numpy("EMBEDDING").shape == (1, 128)
        assert running.family() == family
