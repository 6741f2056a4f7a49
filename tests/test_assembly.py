"""What torch makes of a device that is of no use becomes one line that says so."""

import pytest

from service.assembly import load_encoders
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
