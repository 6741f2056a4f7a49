"""What torch makes of a device that is of no use becomes one line, and threads are as many as asked for."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import AvifImagePlugin

from service.assembly import build_pipelines, load_encoders
from service.cores import Cores
from service.encoder import Encoder
from service.errors import StartupFault
from service.metrics import Metrics
from service.settings import load_settings


@pytest.mark.parametrize("step", ["__init__", "warm_up"])
def test_a_device_that_is_of_no_use_is_told_at_the_start(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("CUDA error: no kernel image is available\nand a page about it")

    monkeypatch.setattr(Encoder, step, fail)
    with pytest.raises(StartupFault, match=r"^cannot compute on cpu: CUDA error: no kernel image is available$"):
        load_encoders(load_settings(["--device", "cpu"]), Cores(), Metrics())


def test_an_avif_is_decoded_in_as_many_threads_as_there_are_cores_to_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not in as many as the machine has CPUs."""
    monkeypatch.setattr(AvifImagePlugin, "DEFAULT_MAX_THREADS", 0)
    settings, cores, metrics = load_settings(["--device", "cpu"]), Cores(3), Metrics()
    preprocessor, encoders, _ = load_encoders(settings, cores, metrics)
    with ThreadPoolExecutor(1) as helpers:
        build_pipelines(settings, preprocessor, encoders, cores, helpers, metrics)
    assert AvifImagePlugin.DEFAULT_MAX_THREADS == 3
