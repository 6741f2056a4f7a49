"""The arithmetic is that of transformers' model: in double precision nothing is left between the two but rounding."""

from typing import Any

import pytest
import torch
from transformers import SiglipVisionConfig, SiglipVisionModel

from service.model import vision_tower
from service.model.vision_tower import VisionTower

SHAPE: dict[str, Any] = {
    "image_size": 32, "patch_size": 8, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3,
    "num_attention_heads": 4,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "as usual": {},
    "one layer, one head": {"num_hidden_layers": 1, "num_attention_heads": 1},
    "pixels beyond the last patch": {"image_size": 30, "patch_size": 7},
    "one patch": {"image_size": 16, "patch_size": 16},
    "another activation": {"hidden_act": "gelu"},
    "yet another activation": {"hidden_act": "quick_gelu"},
    "another epsilon": {"layer_norm_eps": 0.1},
}


def _model(shape: dict[str, Any], dtype: torch.dtype) -> Any:
    """Every weight and bias is random: what starts as zeros or ones would hide that it is not used."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = SiglipVisionModel(SiglipVisionConfig(**{**SHAPE, **shape}))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, 0.1, 0.3)
    return model.to(dtype).eval()


@pytest.mark.parametrize(("by_cublas", "padding"), [(False, 0), (True, 0), (False, 3)])
@pytest.mark.parametrize("images", [1, 5])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_embeddings_are_the_models(
    shape: dict[str, Any], images: int, by_cublas: bool, padding: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with the operators that CUDA gets, which a CPU can compute as well, but for one, and with tokens added."""

    def gelu_in_tanh_form(bias: torch.Tensor, rows: torch.Tensor, weight: torch.Tensor, use_gelu: bool) -> torch.Tensor:
        assert use_gelu
        return torch.nn.functional.gelu(torch.addmm(bias, rows, weight), approximate="tanh")

    monkeypatch.setattr(vision_tower, "_has_cublas", lambda device: by_cublas)
    monkeypatch.setattr(vision_tower, "_worthwhile_padding", lambda *_: padding)
    monkeypatch.setattr(torch, "_addmm_activation", gelu_in_tanh_form)
    model = _model(shape, torch.float64)
    side = model.config.image_size
    values = torch.randn(images, side, side, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    values = values.permute(0, 3, 1, 2)  # as the encoder lays them out in memory
    with torch.inference_mode():
        expected = model(pixel_values=values).pooler_output
        found = VisionTower(model, torch.device("cpu"), torch.float64)(values)
    assert found.shape == (images, 24) and expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_in_float32_on_a_cpu_onednns_linear_layers_give_the_same(shape: dict[str, Any]) -> None:
    model, cpu = _model(shape, torch.float32), torch.device("cpu")
    side = model.config.image_size
    values = torch.randn(5, 3, side, side, generator=torch.Generator().manual_seed(3))
    tower = VisionTower(model, cpu, torch.float32)
    assert isinstance(tower._layers[0].out, vision_tower._OneDnnLinear)
    with torch.inference_mode():
        expected = VisionTower(model.double(), cpu, torch.float64)(values.double())
        torch.testing.assert_close(tower(values).double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_in_bfloat16_on_a_cpu_they_are_as_near_to_float32_as_the_models(shape: dict[str, Any]) -> None:
    """There, where the CPU allows, oneDNN computes the linear layers together with what follows them."""
    model = _model(shape, torch.float32)
    side = model.config.image_size
    values = torch.randn(64, 3, side, side, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        exact = model(pixel_values=values).pooler_output
        found = VisionTower(model, torch.device("cpu"), torch.bfloat16)(values.bfloat16())
        theirs = model.bfloat16()(pixel_values=values.bfloat16()).pooler_output
    assert found.dtype == torch.bfloat16
    assert (found - exact).norm() < 1.2 * (theirs - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize(("patches", "padding"), [(27, 7), (14, 0), (16, 0)])
def test_tokens_are_added_where_they_are_few(patches: int, padding: int) -> None:
    """So they are for so400m-384, in bfloat16 on a CPU, and for no other SigLIP."""
    shape = {"image_size": 8 * patches, "num_hidden_layers": 1}
    for dtype, expected in ((torch.bfloat16, padding), (torch.float32, 0)):
        assert VisionTower(_model(shape, dtype), torch.device("cpu"), dtype)._padding == expected
