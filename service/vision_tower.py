"""SigLIP's vision tower as inference needs it: the weights of `transformers`' model, and nothing between the kernels.

Comes in: pixel values `[N, 3, S, S]`. Goes out: embeddings `[N, D]`, the model's `pooler_output`. The arithmetic is
that of `transformers.SiglipVisionModel`, whose bookkeeping takes as long as the arithmetic where batches are small;
here query, key and value are projected in one product instead of three, and the pooling head's query, the same for
every image, is projected once. It must not know of images, batching or threads.
"""

from typing import NamedTuple

import torch
from torch.nn import functional
from transformers import SiglipVisionModel


class _Affine(NamedTuple):
    """Weight and bias of a linear layer or a layer norm."""

    weight: torch.Tensor
    bias: torch.Tensor


class _Mlp(NamedTuple):
    norm: _Affine
    up: _Affine
    down: _Affine


class _Layer(NamedTuple):
    norm: _Affine
    query_key_value: _Affine
    out: _Affine
    mlp: _Mlp


class VisionTower:
    """The vision tower in one dtype on one device. Weights that have both already are shared with the model.

    Attributes:
        SETTINGS: the fields of the model's configuration that its arithmetic depends on.
    """

    SETTINGS = ("hidden_act", "hidden_size", "layer_norm_eps", "num_attention_heads", "num_hidden_layers", "patch_size")

    def __init__(self, model: SiglipVisionModel, device: torch.device, dtype: torch.dtype) -> None:
        config = model.config
        self._width, self._eps = int(config.hidden_size), float(config.layer_norm_eps)
        self._heads, self._patch_size = int(config.num_attention_heads), int(config.patch_size)
        self._activation = model.encoder.layers[0].mlp.activation_fn
        self._weights = {
            name: weight.detach().to(device=device, dtype=dtype) for name, weight in model.named_parameters()
        }
        self._patch = self._take("embeddings.patch_embedding")
        self._positions = self._weights.pop("embeddings.position_embedding.weight")
        self._layers = [self._take_layer(f"encoder.layers.{index}") for index in range(config.num_hidden_layers)]
        self._last_norm = self._take("post_layernorm")
        self._take_head()

    def _take(self, name: str) -> _Affine:
        return _Affine(self._weights.pop(f"{name}.weight"), self._weights.pop(f"{name}.bias"))

    def _take_mlp(self, norm: str, mlp: str) -> _Mlp:
        return _Mlp(self._take(norm), self._take(f"{mlp}.fc1"), self._take(f"{mlp}.fc2"))

    def _take_layer(self, name: str) -> _Layer:
        parts = [self._take(f"{name}.self_attn.{part}_proj") for part in ("q", "k", "v")]
        return _Layer(
            norm=self._take(f"{name}.layer_norm1"),
            query_key_value=_Affine(*(torch.cat(tensors) for tensors in zip(*parts, strict=True))),
            out=self._take(f"{name}.self_attn.out_proj"),
            mlp=self._take_mlp(f"{name}.layer_norm2", f"{name}.mlp"),
        )

    def _take_head(self) -> None:
        weight = self._weights.pop("head.attention.in_proj_weight")
        bias = self._weights.pop("head.attention.in_proj_bias")
        width = self._width
        query = functional.linear(self._weights.pop("head.probe"), weight[:width], bias[:width])
        self._query = query.view(1, 1, self._heads, -1).transpose(1, 2)
        self._key_value = _Affine(weight[width:].contiguous(), bias[width:].contiguous())
        self._head_out = self._take("head.attention.out_proj")
        self._head_mlp = self._take_mlp("head.layernorm", "head.mlp")

    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pixel values `[N, 3, S, S]` in the tower's dtype -> embeddings `[N, D]` in the same dtype."""
        patches = functional.conv2d(pixel_values, *self._patch, stride=self._patch_size)
        tokens = patches.flatten(2).transpose(1, 2) + self._positions
        for layer in self._layers:
            tokens = tokens + self._attend(layer, self._norm(tokens, layer.norm))
            tokens = tokens + self._transform(tokens, layer.mlp)
        pooled = self._pool(self._norm(tokens, self._last_norm))
        return pooled + self._transform(pooled, self._head_mlp)

    def _attend(self, layer: _Layer, tokens: torch.Tensor) -> torch.Tensor:
        """Self-attention; tokens `[N, T, D]` both ways."""
        query, key, value = self._split(functional.linear(tokens, *layer.query_key_value), 3)
        attended = functional.scaled_dot_product_attention(query, key, value)
        return functional.linear(attended.transpose(1, 2).reshape(tokens.shape), *layer.out)

    def _pool(self, tokens: torch.Tensor) -> torch.Tensor:
        """Attention of the one learned query over the tokens: `[N, T, D]` -> `[N, D]`."""
        key, value = self._split(functional.linear(tokens, *self._key_value), 2)
        attended = functional.scaled_dot_product_attention(self._query.expand(len(tokens), -1, -1, -1), key, value)
        return functional.linear(attended.reshape(len(tokens), self._width), *self._head_out)

    def _split(self, projected: torch.Tensor, parts: int) -> tuple[torch.Tensor, ...]:
        """`[N, T, parts * D]` -> that many `[N, heads, T, D / heads]`."""
        images, tokens, _ = projected.shape
        return projected.view(images, tokens, parts, self._heads, -1).permute(2, 0, 3, 1, 4).unbind()

    def _transform(self, tokens: torch.Tensor, mlp: _Mlp) -> torch.Tensor:
        """Norm and multi-layer perceptron, without the residual; any shape `[..., D]` both ways."""
        hidden = functional.linear(self._norm(tokens, mlp.norm), *mlp.up)
        return functional.linear(self._activation(hidden), *mlp.down)

    def _norm(self, tokens: torch.Tensor, norm: _Affine) -> torch.Tensor:
        return functional.layer_norm(tokens, (self._width,), *norm, self._eps)
