"""Embeddings are those of transformers' own model, on every path; what cannot be loaded is told in one line."""

import itertools
import json
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
)

from service.cores import Cores
from service.errors import StartupFault
from service.metrics import Metrics
from service.model import encoder as encoder_room
from service.model.checkpoint import load_model
from service.model.devices import resolve_devices, resolve_dtype
from service.model.encoder import Encoder
from service.preprocessing.decode import Decoder
from service.preprocessing.preprocess import Preprocessor
from tests.images import SMALL_NAMES, sample

pytestmark = pytest.mark.filterwarnings("ignore:Palette images with Transparency:UserWarning")

Pixels = npt.NDArray[np.uint8]
Vectors = npt.NDArray[np.float32]

CPU = torch.device("cpu")
# Of several SigLIPs, the constants that show whether scale, offset and the order of channels are right.
PROCESSOR = {"size": {"height": 64, "width": 64}, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.3, 0.5, 0.7]}
SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}


class Batch(NamedTuple):
    """The awkward images, as the service prepares them and as the reference does."""

    pixels: Pixels
    pixel_values: Vectors
    expected: Vectors


def _tiny_model() -> Any:
    """The same small random tower each time; its embeddings of different images are far apart."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return SiglipVisionModel(SiglipVisionConfig(image_size=64, patch_size=16, **SHAPE)).eval()


def _encoder(dtype: torch.dtype = torch.float32, cores: int = 2) -> Encoder:
    preprocessor = Preprocessor.from_config(PROCESSOR)
    return Encoder(_tiny_model(), CPU, dtype, preprocessor.scale, preprocessor.offset, Cores(cores), Metrics())


def _plain_encoder(model: Any) -> Encoder:
    """One that normalises nothing."""
    return Encoder(model, CPU, torch.float32, (1.0,) * 3, (0.0,) * 3, Cores(2), Metrics())


@pytest.fixture(scope="module")
def batch() -> Batch:
    decoder = Decoder(2**25, 10**6, exif_orientation=False, background=None)
    preprocessor = Preprocessor.from_config(PROCESSOR, exact=True)
    # They show the same pictures as those of 12 bits, and without alpha.
    repeats = ("tiff_gray_16_bit", "tiff_palette_of_bytes_and_alpha")
    names = [name for name in SMALL_NAMES if not name.startswith(repeats)]
    images = [decoder.decode(sample(name).data) for name in names]
    pixels = np.empty((len(images), 64, 64, 3), np.uint8)
    for image, row in zip(images, pixels, strict=True):
        preprocessor.resize_into(row, image.pixels, image.extent)
    upright = [Image.fromarray(image.pixels) for image in images]
    values = SiglipImageProcessorPil(**PROCESSOR)(images=upright, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        expected = _tiny_model()(pixel_values=values).pooler_output.numpy()
    return Batch(pixels, values.numpy(), expected)


def _cosines(first: Vectors, second: Vectors) -> Vectors:
    """Of each row of the first with each row of the second."""
    unit = [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (first, second)]
    cosines: Vectors = unit[0] @ unit[1].T
    return cosines


def _assert_same(found: Vectors, expected: Vectors, least: float) -> None:
    """Each row has its own embedding, and nobody else's."""
    assert found.dtype == np.float32 and found.shape == expected.shape
    cosines = _cosines(found, expected)
    assert cosines.diagonal().min() >= least
    np.testing.assert_array_equal(cosines.argmax(axis=1), np.arange(len(expected)))


def test_embeddings_are_the_references(batch: Batch) -> None:
    assert len(batch.expected) >= 12
    assert _cosines(batch.expected, batch.expected)[~np.eye(len(batch.expected), dtype=bool)].max() < 0.999
    encoder = _encoder()
    assert (encoder.image_size, encoder.dimension) == (64, 64)
    pixels = encoder.room_for(len(batch.pixels))
    assert pixels.shape == batch.pixels.shape and pixels.dtype == np.uint8
    pixels[...] = batch.pixels
    found = encoder.encode(pixels)
    _assert_same(found, batch.expected, 0.99999)
    np.testing.assert_allclose(found, batch.expected, atol=1e-4)


def test_prepared_pixel_values_give_the_same_embeddings(batch: Batch) -> None:
    _assert_same(_encoder().encode_pixel_values(batch.pixel_values), batch.expected, 0.99999)


def test_bfloat16_is_close(batch: Batch) -> None:
    found = _encoder(torch.bfloat16).encode(batch.pixels)
    _assert_same(found, batch.expected, 0.995)
    assert np.abs(found - batch.expected).max() > 1e-4  # it was bfloat16


@pytest.mark.parametrize(("dtype", "least"), [(torch.float32, 0.99999), (torch.bfloat16, 0.9999)], ids=str)
def test_a_batch_is_its_rows_in_their_order(batch: Batch, dtype: torch.dtype, least: float) -> None:
    encoder = _encoder(dtype)
    together = encoder.encode(batch.pixels)
    for size in (1, 2, 3, 5, 8):
        in_pieces = [encoder.encode(batch.pixels[at : at + size]) for at in range(0, len(together), size)]
        _assert_same(np.concatenate(in_pieces), together, least)
    order = np.random.default_rng(0).permutation(len(batch.pixels))
    _assert_same(encoder.encode(batch.pixels[order]), together[order], least)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_neither_cores_nor_other_callers_change_an_embedding(batch: Batch, dtype: torch.dtype) -> None:
    """Not a bit of it in float32; in bfloat16 oneDNN's order of summation is by the number of threads."""
    one_core, two_cores = _encoder(dtype, 1), _encoder(dtype, 2)
    pieces = [batch.pixels[start : start + 1 + start % 5] for start in range(len(batch.pixels))] * 3
    alone = [one_core.encode(piece) for piece in pieces]
    with ThreadPoolExecutor(6) as callers:
        for others in (two_cores.encode(piece) for piece in pieces), callers.map(two_cores.encode, pieces):
            for found, expected in zip(others, alone, strict=True):
                _assert_same(found, expected, 0.9999)
                if dtype == torch.float32:
                    np.testing.assert_array_equal(found, expected)


class _Tower:
    """Stands for the vision tower: zeros, when it has seen the pixel values."""

    def __init__(self, see: Callable[[torch.Tensor], object] = len) -> None:
        self.see = see

    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        self.see(pixel_values)
        return torch.zeros(len(pixel_values), 64)


@pytest.fixture
def around(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Encoder]:
    """Builds an encoder around a tower."""

    def build(tower: _Tower, cores: int = 2, operations_a_thread: float = 1.0) -> Encoder:
        monkeypatch.setattr(encoder_room, "VisionTower", lambda *_: tower)
        monkeypatch.setattr(encoder_room, "_LEAST_OPERATIONS_A_THREAD", operations_a_thread)
        return _encoder(cores=cores)

    return build


def test_on_a_cpu_batches_run_at_the_same_time_on_shares_of_the_cores(around: Callable[..., Encoder]) -> None:
    both_inside, threads = threading.Barrier(2), list[int]()

    def meet(_: torch.Tensor) -> None:
        threads.append(torch.get_num_threads())
        both_inside.wait(timeout=60)

    encoder = around(_Tower(meet), cores=2)
    with ThreadPoolExecutor(2) as callers:
        list(callers.map(encoder.encode, [np.zeros((1, 64, 64, 3), np.uint8)] * 2))
    assert sorted(threads) == [1, 2]


def test_a_small_batch_is_left_to_few_threads(around: Callable[..., Encoder]) -> None:
    """An image of this model takes millions of operations: here one is worth half a thread, three are worth two."""
    threads = list[int]()
    operations = _encoder()._operations
    encoder = around(_Tower(lambda _: threads.append(torch.get_num_threads())), 4, 2.0 * operations)
    for images in (1, 3, 16):
        encoder.encode(np.zeros((images, 64, 64, 3), np.uint8))
    assert threads == [1, 2, 4]


@pytest.mark.parametrize(("side", "most"), [(64, 16), (384, 3), (896, 1)])
def test_a_cpu_computes_few_images_and_tokens_at_once(monkeypatch: pytest.MonkeyPatch, side: int, most: int) -> None:
    """oneDNN keeps kernels for each number of images, and the memory for many tokens is cleared for each operator."""
    met = list[int]()
    monkeypatch.setattr(encoder_room, "VisionTower", lambda *_: _Tower(lambda images: met.append(len(images))))
    encoder = _plain_encoder(SiglipVisionModel(SiglipVisionConfig(image_size=side, patch_size=14, **SHAPE)))
    for images in range(1, 61):
        assert len(encoder.encode(np.zeros((images, 1, 1, 3), np.uint8))) == images
    assert sum(met) == sum(range(1, 61)) and max(met) == most


@pytest.mark.parametrize(("cores", "lanes"), [(1, 2), (2, 3), (8, 8), (64, 8)])
def test_a_cpu_has_a_lane_a_core_and_one_more(around: Callable[..., Encoder], cores: int, lanes: int) -> None:
    assert around(_Tower(), cores).lanes == lanes


@pytest.mark.parametrize(
    ("largest", "seconds", "batches"),
    [(1, 5.0, [1, 1]), (3, 5.0, [1, 1, 2, 3]), (4, 5.0, [1, 1, 2, 4]), (4, -1.0, [1])],
)
def test_warming_up_meets_every_number_of_images_and_of_threads_or_ends_when_it_gets_long(
    around: Callable[..., Encoder],
    monkeypatch: pytest.MonkeyPatch,
    largest: int,
    seconds: float,
    batches: list[int],
) -> None:
    monkeypatch.setattr(encoder_room, "_CPU_WARM_UP_SECONDS", seconds)
    seen: list[tuple[int, int]] = []
    around(_Tower(lambda batch: seen.append((len(batch), torch.get_num_threads()))), cores=2).warm_up(largest)
    # First what tells how long the largest takes.
    first, then = seen[: len(batches)], seen[len(batches) :]
    assert first == [(images, 2) for images in batches]
    assert then == [(images, threads) for threads in (2, 1) for images in range(1, largest + 1) if seconds > 0]


def test_a_batch_that_does_not_fit_is_told_at_the_start(around: Callable[..., Encoder]) -> None:
    def take_memory(pixel_values: torch.Tensor) -> None:
        if len(pixel_values) > 4:
            raise torch.OutOfMemoryError("out of memory\nof many lines")

    with pytest.raises(StartupFault, match=r"^batches of 6 .* memory of cpu; lower --max-batch-size$"):
        around(_Tower(take_memory)).warm_up(6)


@pytest.mark.parametrize(
    ("names", "count", "expected"),
    [
        ("auto", 0, ["cpu"]),
        ("auto", 2, ["cuda:0"]),
        ("cpu", 2, ["cpu"]),
        ("cuda", 1, ["cuda:0"]),
        ("cuda:1", 2, ["cuda:1"]),
        ("cuda:0,cuda:1", 2, ["cuda:0", "cuda:1"]),
        ("cuda", 0, None),
        ("cuda:1", 1, None),
        ("cuda:0,cuda:2", 2, None),
    ],
)
def test_devices(monkeypatch: pytest.MonkeyPatch, names: str, count: int, expected: list[str] | None) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    if expected is None:
        with pytest.raises(StartupFault, match=rf"^device cuda:\d is not there: torch sees {count} CUDA"):
            resolve_devices(names)
    else:
        assert resolve_devices(names) == [torch.device(name) for name in expected]


def test_a_device_is_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(StartupFault, match="names a device twice: cuda,cuda:0"):
        resolve_devices("cuda,cuda:0")


def test_a_missing_driver_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(StartupFault, match=r"sees 0 CUDA device\(s\); is there a driver for CUDA 13.0\?$"):
        resolve_devices("cuda")
    assert resolve_devices("auto") == [CPU]
    assert caplog.messages == ["computing on a CPU: torch sees no CUDA device; is there a driver for CUDA 13.0?"]


@pytest.mark.parametrize(
    ("name", "device", "capability", "units", "expected"),
    [
        ("float32", "cuda:0", (9, 0), {"avx512_bf16": True}, torch.float32),
        ("float16", "cpu", (9, 0), {}, torch.float16),
        ("bfloat16", "cpu", (7, 0), {}, torch.bfloat16),
        ("auto", "cuda:0", (8, 0), {}, torch.bfloat16),
        ("auto", "cuda:0", (9, 0), {}, torch.bfloat16),
        ("auto", "cuda:0", (7, 5), {"avx512_bf16": True}, torch.float16),
        ("auto", "cpu", (9, 0), {"avx2": True, "avx512_bf16": False}, torch.float32),
        ("auto", "cpu", (7, 0), {"avx512_bf16": True}, torch.bfloat16),
        ("auto", "cpu", (7, 0), {"amx_bf16": True}, torch.bfloat16),
    ],
)
def test_dtypes(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    device: str,
    capability: tuple[int, int],
    units: dict[str, bool],
    expected: torch.dtype,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)
    assert resolve_dtype(name, torch.device(device)) is expected


def _save(folder: Path) -> Path:
    _tiny_model().save_pretrained(folder)
    return folder


def _without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _without_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor for name, tensor in tensors.items() if name != "head.probe"}, folder / "model.safetensors")


def _with_a_number(value: float) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        tensors["head.probe"][..., -1] = value
        save_file(tensors, folder / "model.safetensors")

    return change


def _cut_weights(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size // 2)


def _change_config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))

    return change


def _broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def _add_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "cannot be read: .*"),
    "broken config": (_broken_config, "cannot be read: .*not a valid JSON"),
    "ViT": (lambda folder: ViTConfig().save_pretrained(folder), "is no SigLIP: its model type is 'vit'"),
    "CLIP": (lambda folder: CLIPConfig().save_pretrained(folder), "is no SigLIP: its model type is 'clip'"),
    "unknown type": (_change_config(model_type="nope"), "cannot be read: .*nope"),
    "no weights": (_without_weights, "has no readable weights .*model.safetensors.*--random-weights true"),
    "a tensor is missing": (_without_a_tensor, "lacks weights: head.probe"),
    "a layer is missing": (_change_config(num_hidden_layers=3), "lacks weights: encoder.layers.2"),
    "a layer is left out": (
        _change_config(num_hidden_layers=1),
        "weights that its config.json leaves out: encoder.layers.1",
    ),
    "other shapes": (
        _change_config(intermediate_size=48),
        r"contradicts itself: its weights have encoder.layers.0.mlp.fc1.bias in the shape \[96\], .* \[48\]",
    ),
    "NaN": (_with_a_number(float("nan")), "has weights that are NaN or infinite: head.probe$"),
    "infinity": (_with_a_number(-float("inf")), "has weights that are NaN or infinite: head.probe$"),
    "gray images": (_change_config(num_channels=1), "reads images of 1 channels"),
    "no head": (_change_config(vision_use_head=False), "has no pooling head"),
    "an adapter": (_add_adapter, "has an adapter beside its weights"),
    "cut weights": (_cut_weights, "has no readable weights .*incomplete"),
    "heads that do not divide": (_change_config(num_attention_heads=5), "divisible"),
    "a size of words": (_change_config(hidden_size="big"), "cannot be read: .*hidden_size"),
}


@pytest.mark.parametrize(("damage", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_broken_checkpoint_is_told_in_one_line(damage: Callable[[Path], Any], reason: str, tmp_path: Path) -> None:
    damage(_save(tmp_path / "checkpoint"))
    with pytest.raises(StartupFault, match=rf"^checkpoint '{tmp_path}/checkpoint' .*{reason}") as caught:
        load_model(str(tmp_path / "checkpoint"), None, random_weights=False)
    assert str(caught.value).isprintable()


def test_a_bare_configuration_of_no_model_is_told_in_one_line(tmp_path: Path) -> None:
    _change_config(num_attention_heads=5)(_save(tmp_path))
    with pytest.raises(StartupFault, match="divisible"):
        load_model(str(tmp_path), None, random_weights=True)


def test_a_checkpoints_own_code_is_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at a terminal either: nobody answers there, or anybody."""
    _change_config(model_type="own", auto_map={"AutoConfig": "own.Own"})(_save(tmp_path))
    (tmp_path / "own.py").write_text("raise SystemExit('it was run')")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(StartupFault, match="contains custom code"):
        load_model(str(tmp_path), None, random_weights=False)


@pytest.mark.parametrize("checkpoint", ["/no/such/folder", "./nowhere", "~/nowhere"])
def test_a_missing_folder_is_not_looked_for_on_the_hub(checkpoint: str) -> None:
    with pytest.raises(StartupFault, match=rf"^checkpoint '{checkpoint}' is no folder$"):
        load_model(checkpoint, None, random_weights=False)


@pytest.mark.parametrize("name", [None, "siglip.safetensors"])
def test_a_checkpoint_of_both_towers_gives_its_vision_tower(tmp_path: Path, batch: Batch, name: str | None) -> None:
    """From the file that its configuration names: the usual one may hold something else."""
    text = {**SHAPE, "vocab_size": 50, "max_position_embeddings": 8}
    vision = {**SHAPE, "image_size": 64, "patch_size": 16}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).eval()
    model.save_pretrained(tmp_path)
    with torch.inference_mode():
        expected = model.get_image_features(torch.from_numpy(batch.pixel_values)).pooler_output.numpy()
    if name:
        (tmp_path / "model.safetensors").rename(tmp_path / name)
        _change_config(transformers_weights=name)(tmp_path)
        save_file(_tiny_model().state_dict(), tmp_path / "model.safetensors")
    loaded = load_model(str(tmp_path), None, random_weights=False)
    assert type(loaded) is SiglipVisionModel and loaded.dtype == torch.float32
    encoder = _plain_encoder(loaded)
    _assert_same(encoder.encode_pixel_values(batch.pixel_values), expected, 0.99999)


def test_weights_stay_as_they_are_whatever_becomes_of_their_file(tmp_path: Path, batch: Batch) -> None:
    """Loaded, those in float32 are the file itself, mapped: one that is written over would be another model, and one
    that is cut, or out of reach, would kill the process."""
    encoder = _plain_encoder(load_model(str(_save(tmp_path)), None, random_weights=False))
    before = encoder.encode(batch.pixels)
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(file.stat().st_size))
    np.testing.assert_array_equal(encoder.encode(batch.pixels), before)


@pytest.mark.parametrize("name", ["quantization_config", "vision_config.quantization_config"])
def test_a_quantised_checkpoint_is_refused(tmp_path: Path, name: str) -> None:
    """Or its codes would be served as if they were weights."""
    SiglipModel(SiglipConfig(text_config={**SHAPE, "vocab_size": 50}, vision_config=SHAPE)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    place = config if name.count(".") == 0 else config["vision_config"]
    place["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(StartupFault, match="is quantised"):
        load_model(str(tmp_path), None, random_weights=False)


def test_a_half_precision_checkpoint_is_loaded_in_float32(tmp_path: Path) -> None:
    _tiny_model().to(torch.bfloat16).save_pretrained(tmp_path)
    assert load_model(str(tmp_path), None, random_weights=False).dtype == torch.float32


def test_random_weights_are_the_same_each_time_and_announced(
    tmp_path: Path, batch: Batch, caplog: pytest.LogCaptureFixture
) -> None:
    _without_weights(_save(tmp_path / "bare"))
    embeddings = []
    for _ in range(2):
        torch.rand(1)  # the state of the generator is another each time
        state = torch.random.get_rng_state()
        model = load_model(str(tmp_path / "bare"), None, random_weights=True)
        assert torch.equal(state, torch.random.get_rng_state())
        embeddings.append(_plain_encoder(model).encode(batch.pixels))
    first, second = embeddings
    np.testing.assert_array_equal(first, second)
    assert first.std() > 0
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [record.name for record in warnings] == ["service.model.checkpoint"] * 2
    assert "RANDOM WEIGHTS" in warnings[0].message


def test_a_batch_for_which_memory_is_short_is_done_in_halves(
    monkeypatch: pytest.MonkeyPatch, batch: Batch, caplog: pytest.LogCaptureFixture
) -> None:
    encoder, most = _encoder(), len(batch.pixels) // 2 + 1
    run = Encoder._run_batch

    def short_of_memory(self: Encoder, images: torch.Tensor) -> torch.Tensor:
        if len(images) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(self, images)

    monkeypatch.setattr(Encoder, "_run_batch", short_of_memory)
    _assert_same(encoder.encode(batch.pixels), batch.expected, 0.99999)
    assert encoder.failures_in_a_row == 0 and "trying halves" in caplog.text
    most = 1
    for failures in (1, 2):
        with pytest.raises(torch.OutOfMemoryError):
            encoder.encode(batch.pixels)
        assert encoder.failures_in_a_row == failures
    encoder.encode(batch.pixels[:1])
    assert encoder.failures_in_a_row == 0


def test_both_ways_into_the_encoder_are_measured(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics, preprocessor = Metrics(), Preprocessor.from_config(PROCESSOR)
    encoder = Encoder(_tiny_model(), CPU, torch.float32, preprocessor.scale, preprocessor.offset, Cores(2), metrics)
    clock = SimpleNamespace(monotonic=partial(next, itertools.count(step=0.004)))
    monkeypatch.setattr(encoder_room, "time", clock)  # of which 4 ms are over at each look
    encoder.warm_up(4)
    assert encoder.image_seconds == pytest.approx(0.001)
    encoder.encode(batch.pixels[:3])
    encoder.encode_pixel_values(batch.pixel_values[:2])
    value = metrics.registry.get_sample_value
    assert value("embed_batch_images_count") == 2 and value("embed_batch_images_sum") == 5
    assert value("embed_stage_seconds_count", {"stage": "encode"}) == 2
    assert value("embed_encoder_failures_total") == 0
    with pytest.raises(RuntimeError):
        encoder.encode_pixel_values(batch.pixel_values[:2, :1])
    assert value("embed_encoder_failures_total") == 1
