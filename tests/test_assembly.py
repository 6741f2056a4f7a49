"""The rooms are joined as the settings say, on each device; one that is of no use, or computes otherwise, is told."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
import torch

from service import assembly
from service.assembly import build_pipelines, by_device, known_embedding, load_encoders
from service.cores import Cores
from service.errors import Fault, StartupFault
from service.health.canary import canary_image, same_direction
from service.metrics import Metrics
from service.model.encoder import Encoder
from service.pipeline import Embedding, Pipeline
from service.preprocessing.decode import Decoder
from service.preprocessing.preprocess import Preprocessor
from service.settings import load_settings


class Machine(NamedTuple):
    """A machine with two devices, and an encoder on each."""

    preprocessor: Preprocessor
    encoders: list[Encoder]

    def pipelines(self, *arguments: str) -> list[Pipeline]:
        """By these settings."""
        return build_pipelines(load_settings(arguments), self.preprocessor, self.encoders, Cores(1), Metrics())


@pytest.fixture(scope="module")
def machine() -> Machine:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembly, "resolve_devices", lambda _: [torch.device("cpu")] * 2)
        preprocessor, encoders, _ = load_encoders(load_settings(["--max-batch-size", "1"]), Cores(1), Metrics())
    assert len(encoders) == 2
    return Machine(preprocessor, encoders)


Spoil = Callable[[Embedding], Embedding]
SPOILS: dict[str, tuple[Spoil, str]] = {
    "flipped": (np.fliplr, "others on another device"),
    "zero": (np.zeros_like, "an encoder's embeddings are no numbers"),
    "NaN": (lambda embeddings: embeddings * np.float32("nan"), "cannot be embedded: .* is not finite"),
}


@pytest.mark.parametrize("cache_mb", ["0", "1"])
@pytest.mark.parametrize("spoil", SPOILS)
def test_a_device_that_computes_otherwise_keeps_the_service_from_starting(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, spoil: str, cache_mb: str
) -> None:
    """Also where the cache knows what the other one has made of the image."""
    pipelines, encode = machine.pipelines("--cache-mb", cache_mb), machine.encoders[1].encode
    assert np.isfinite(known_embedding(pipelines)).all()
    how, message = SPOILS[spoil]
    monkeypatch.setattr(machine.encoders[1], "encode", lambda pixels: how(encode(pixels)))
    with pytest.raises(StartupFault, match=message):
        known_embedding(pipelines)


def test_each_device_is_asked_by_itself_and_tells_of_what_it_cannot_embed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipelines, encode = machine.pipelines(), machine.encoders[1].encode
    known = known_embedding(pipelines)
    monkeypatch.setattr(machine.encoders[1], "encode", lambda pixels: -encode(pixels))
    first, second = (embed() for embed in by_device(pipelines))
    assert not isinstance(first, Fault) and same_direction(first, known)
    assert not isinstance(second, Fault) and same_direction(-second, known)
    monkeypatch.setattr(machine.encoders[1], "encode", lambda _: 1 / 0)
    assert [isinstance(embed(), Fault) for embed in by_device(pipelines)] == [False, True]


def test_the_devices_share_one_cache_where_there_is_to_be_one(machine: Machine) -> None:
    """It takes in no canary: it would answer for the encoder, and one every few seconds would push out all the rest."""
    first, second = machine.pipelines("--cache-mb", "1")
    known_embedding([first, second])
    assert first._cache is not None and first._cache.get_all([first._cache.digest(canary_image())]) == {}
    assert first._cache is not None and first._cache is second._cache
    assert [pipeline._cache for pipeline in machine.pipelines()] == [None, None]


def test_images_are_decoded_as_the_settings_say(machine: Machine) -> None:
    limits = ("--max-image-bytes", "5000", "--max-image-pixels", "1000")
    looks = ("--exif-orientation", "false", "--background", "#102030")
    expected = Decoder(5000, 1000, machine.preprocessor.least_side, exif_orientation=False, background=(16, 32, 48))
    assert [pipeline._decoder for pipeline in machine.pipelines(*limits, *looks)] == [expected] * 2


@pytest.mark.parametrize("step", ["__init__", "warm_up"])
def test_a_device_that_is_of_no_use_is_told_at_the_start(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("CUDA error: no kernel image is available\nand a page about it")

    monkeypatch.setattr(Encoder, step, fail)
    with pytest.raises(StartupFault, match=r"^cannot compute on cpu: CUDA error: no kernel image is available$"):
        load_encoders(load_settings(["--device", "cpu"]), Cores(), Metrics())
