"""Where /dev/shm is too small for what arrives, some is answered with an error, and the service goes on."""

import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.images import encode, sample
from tests.integration.clients import post_raw
from tests.integration.service_process import service, wait_for

IN_FLIGHT = 30
# Of canaries, which come every other second.
CROWDED_OUT = 2


@pytest.mark.skipif(
    subprocess.run(["unshare", "--mount", "true"], check=False, capture_output=True).returncode != 0,
    reason="no mount namespaces: root is needed",
)
def test_batches_that_do_not_fit_are_no_failure_of_the_service(tmp_path: Path) -> None:
    """Its canary is among them again and again, and a lane whose memory cannot grow gets none of the large batches."""
    noise = np.random.default_rng(1).integers(0, 256, (1150, 1200, 3), np.uint8)
    large, small = encode(Image.fromarray(noise), "BMP"), sample("jpeg_photo").data
    with service(tmp_path, module="tests.faults.little_shared_memory", batches=()) as running:
        outcomes: Counter[str] = Counter()

        def send_until_canaries_are_crowded_out(_: int) -> None:
            while running.output().count("the canary was answered with 500") < CROWDED_OUT:
                answer = post_raw(running, large)
                outcomes[answer.json()["error"][:47] if answer.status_code == 500 else str(answer.status_code)] += 1

        with ThreadPoolExecutor(IN_FLIGHT) as clients:
            list(clients.map(send_until_canaries_are_crowded_out, range(IN_FLIGHT)))
        assert outcomes.keys() == {"200", "Failed to increase the shared memory pool size "}
        wait_for(running.is_ready)
        assert post_raw(running, small).status_code == 200
        assert "embed_triton_restarts_total 0.0" in running.metrics()
