"""SigLIP's vision tower as inference needs it: the weights of `transformers`' model, and nothing between the kernels.

Comes in: pixel values `[N, 3, S, S]`. Goes out: embeddings `[N, D]`, the model's `pooler_output`. The arithmetic is
that of `transformers.SiglipVisionModel`, whose bookkeeping takes as long as the arithmetic where batches are small;
here patches are embedded by a plain product instead of a convolution, query, key and value are projected in one
product instead of three, the pooling head projects no token to a key or a value, what follows a product is left to the
product's kernel where the device has one that does both, and a few tokens to which none attends are added where kernels
are faster with them. It must not know of images, batching or threads.
"""

from typing import NamedTuple

import torch
from torch.nn import functional
from transformers import SiglipVisionModel

# As `hidden_act` of a configuration; the activation of every published SigLIP.
_GELU_TANH = "gelu_pytorch_tanh"
# GELU leaves it as it is, in every dtype, and to divide a bias by it costs no bit.
_PASSES_GELU = 8.0
# Kernels read rows of so many numbers at their best.
_CUDA_ROW = 64
# Attention in bfloat16 on a CPU takes a third less time for 736 tokens than for 729, the number of so400m-384, which
# AMX's tiles do not divide. What is added costs everywhere else, so it must be little.
_TILE_TOKENS = 16
_MOST_PADDING = 0.02


class _Affine(NamedTuple):
    """Weight and bias of a layer norm, or of what becomes a linear layer."""

    weight: torch.Tensor
    bias: torch.Tensor


class _Linear:
    """A linear layer: `[..., in]` -> `[..., out]`."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        self._weight = weight
        self._bias = bias

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        return functional.linear(tokens, self._weight, self._bias)

    def gelu(self, tokens: torch.Tensor) -> torch.Tensor:
        """The layer, then GELU in its tanh form."""
        return functional.gelu(self(tokens), approximate="tanh")

    def plus(self, residual: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The layer, and the residual on top."""
        return residual + self(tokens)


class _OneDnnLinear(_Linear):
    """The same by oneDNN, with the weight laid out as its kernel reads it: once, where `functional.linear` does it anew
    at every call. What follows a product is part of it, and rounded once instead of twice.

    These are the operators that torch's own compiler writes for a CPU. With AMX a whole tower in bfloat16 becomes 1.2
    to 1.6 times as fast; in float32 it becomes 1.1 to 1.2 times as fast with AVX512, up to 1.1 times with AVX2 alone.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        super().__init__(torch.ops.mkldnn._reorder_linear_weight(weight), bias)

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        return self._product(tokens, "none", "")

    def gelu(self, tokens: torch.Tensor) -> torch.Tensor:
        return self._product(tokens, "gelu", "tanh")

    def plus(self, residual: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            tokens, residual, self._weight, self._bias, "add"
        )
        return total

    def _product(self, tokens: torch.Tensor, then: str, algorithm: str) -> torch.Tensor:
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            tokens, self._weight, self._bias, then, [], algorithm
        )
        return product


class _CudaLinear(_Linear):
    """The same by cuBLASLt, whose products can go on with GELU."""

    def gelu(self, tokens: torch.Tensor) -> torch.Tensor:
        rows = tokens.flatten(0, -2)
        # On CUDA, and only there, in GELU's tanh form.
        activated = torch._addmm_activation(self._bias, rows, self._weight.t(), use_gelu=True)
        return activated.view(*tokens.shape[:-1], -1)


class _CudaLinearOntoResidual(_Linear):
    """A linear layer whose bias is part of its product already, and which adds to the residual in place."""

    def plus(self, residual: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        # A view, and never a copy, which would get the sum in the residual's place.
        residual.view(-1, residual.shape[-1]).addmm_(tokens.flatten(0, -2), self._weight.t())
        return residual


class _Mlp(NamedTuple):
    norm: _Affine
    up: _Linear
    down: _Linear


class _Layer(NamedTuple):
    norm: _Affine
    query_key_value: _Linear
    out: _Linear
    mlp: _Mlp


class VisionTower:
    """The vision tower in one dtype on one device. Its weights are its own: the model's may lie in a file, mapped.

    Attributes:
        SETTINGS: the fields of the model's configuration that its arithmetic depends on.
    """

    SETTINGS = ("hidden_act", "hidden_size", "layer_norm_eps", "num_attention_heads", "num_hidden_layers", "patch_size")

    def __init__(self, model: SiglipVisionModel, device: torch.device, dtype: torch.dtype) -> None:
        config = model.config
        self._width, self._eps = int(config.hidden_size), float(config.layer_norm_eps)
        self._heads, self._patch_size = int(config.num_attention_heads), int(config.patch_size)
        self._activation = None if config.hidden_act == _GELU_TANH else model.encoder.layers[0].mlp.activation_fn
        self._by_cublas = _has_cublas(device)
        self._linear = _CudaLinear if self._by_cublas else _OneDnnLinear if _has_onednn(device, dtype) else _Linear
        self._weights = {
            name: weight.detach().to(device=device, dtype=dtype, copy=True) for name, weight in model.named_parameters()
        }
        self._patch = self._take_patch_embedding()
        self._positions = self._weights.pop("embeddings.position_embedding.weight")
        # Of few numbers, so nothing is gained by fewer bits.
        self._pool_dtype = torch.promote_types(dtype, torch.float32)
        self._padding = _worthwhile_padding(len(self._positions), device, dtype)
        self._mask = self._mask_of_padding()
        self._layers = [self._take_layer(f"encoder.layers.{index}") for index in range(config.num_hidden_layers)]
        self._last_norm = _Affine(*(tensor.to(self._pool_dtype) for tensor in self._take("post_layernorm")))
        self._take_head()

    def _mask_of_padding(self) -> torch.Tensor | None:
        """What keeps every token from attending to those that are added, `[1, 1, 1, T]`."""
        if not self._padding:
            return None
        mask: torch.Tensor = self._positions.new_zeros(1, 1, 1, len(self._positions) + self._padding)
        mask[..., -self._padding :] = -torch.inf
        return mask

    def _take(self, name: str) -> _Affine:
        return _Affine(self._weights.pop(f"{name}.weight"), self._weights.pop(f"{name}.bias"))

    def _take_patch_embedding(self) -> _Linear:
        """A convolution whose stride is its width is a product with the pixels of each patch, channels last."""
        weight, bias = self._take("embeddings.patch_embedding")
        return self._linear(weight.permute(0, 2, 3, 1).flatten(1), bias)

    def _take_linear(self, name: str) -> _Linear:
        return self._linear(*self._take(name))

    def _take_mlp(self, norm: str, mlp: str) -> _Mlp:
        up, down = self._take(f"{mlp}.fc1"), self._take(f"{mlp}.fc2")
        if self._by_cublas and not self._activation:
            up, down = _with_bias_as_unit(up, down)
            return _Mlp(self._take(norm), self._linear(*up), _CudaLinearOntoResidual(*down))
        return _Mlp(self._take(norm), self._linear(*up), self._linear(*down))

    def _take_layer(self, name: str) -> _Layer:
        parts = [self._take(f"{name}.self_attn.{part}_proj") for part in ("q", "k", "v")]
        return _Layer(
            norm=self._take(f"{name}.layer_norm1"),
            query_key_value=self._linear(*(torch.cat(tensors) for tensors in zip(*parts, strict=True))),
            out=self._take_linear(f"{name}.self_attn.out_proj"),
            mlp=self._take_mlp(f"{name}.layer_norm2", f"{name}.mlp"),
        )

    def _take_head(self) -> None:
        """The query is the same for every image, and the pooled value the value of the pooled tokens.

        So a token's score is a product with what is known before, and only what is pooled becomes a value. The key's
        bias is left out: it adds the same to all scores of a head.
        """
        names = ("probe", "attention.in_proj_weight", "attention.in_proj_bias")
        probe, weight, bias = (self._weights.pop(f"head.{name}").to(self._pool_dtype) for name in names)
        width, head = self._width, self._width // self._heads
        query = functional.linear(probe, weight[:width], bias[:width])
        keys, values = weight[width:].view(2, self._heads, head, width)
        self._score = (query.view(self._heads, 1, head) @ keys / head**0.5).view(self._heads, width)
        self._value = _Affine(values.transpose(1, 2).contiguous(), bias[2 * width :].view(self._heads, 1, head))
        self._head_out = self._take_linear("head.attention.out_proj")
        self._head_mlp = self._take_mlp("head.layernorm", "head.mlp")

    def __call__(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pixel values `[N, 3, S, S]` in the tower's dtype -> embeddings `[N, D]` in the same dtype."""
        tokens = self._patch(self._patches(pixel_values)) + self._positions
        if self._padding:
            tokens = functional.pad(tokens, (0, 0, 0, self._padding))
        for layer in self._layers:
            tokens = self._attend(tokens, layer)
            tokens = self._transform(tokens, layer.mlp)
        return self._transform(self._head_out(self._pool(tokens)), self._head_mlp)

    def _patches(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`[N, 3, S, S]` -> the pixels of each patch, `[N, T, patch * patch * 3]`; what fills no patch is left out."""
        size = self._patch_size
        squares = pixel_values.unfold(2, size, size).unfold(3, size, size).permute(0, 2, 3, 4, 5, 1)
        return squares.flatten(3).flatten(1, 2)

    def _attend(self, tokens: torch.Tensor, layer: _Layer) -> torch.Tensor:
        """Norm and self-attention, with the residual; tokens `[N, T, D]` both ways."""
        query, key, value = self._split(layer.query_key_value(self._norm(tokens, layer.norm)))
        attended = functional.scaled_dot_product_attention(query, key, value, self._mask)
        return layer.out.plus(tokens, attended.transpose(1, 2).reshape(tokens.shape))

    def _pool(self, tokens: torch.Tensor) -> torch.Tensor:
        """Norm, and attention of the one learned query over the tokens: `[N, T, D]` -> `[N, D]`."""
        normed = self._norm(tokens.to(self._pool_dtype), self._last_norm)
        scores = functional.linear(normed, self._score).transpose(1, 2)
        if self._mask is not None:
            scores = scores + self._mask[0]
        pooled = (scores.softmax(-1) @ normed).transpose(0, 1)
        values = torch.baddbmm(self._value.bias, pooled, self._value.weight)
        return values.transpose(0, 1).reshape(len(tokens), self._width).to(tokens.dtype)

    def _split(self, projected: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Query, key and value: `[N, T, 3 * D]` -> three times `[N, heads, T, D / heads]`."""
        images, tokens, _ = projected.shape
        return projected.view(images, tokens, 3, self._heads, -1).permute(2, 0, 3, 1, 4).unbind()

    def _transform(self, tokens: torch.Tensor, mlp: _Mlp) -> torch.Tensor:
        """Norm and multi-layer perceptron, with the residual; any shape `[..., D]` both ways."""
        normed = self._norm(tokens, mlp.norm)
        hidden = self._activation(mlp.up(normed)) if self._activation else mlp.up.gelu(normed)
        return mlp.down.plus(tokens, hidden)

    def _norm(self, tokens: torch.Tensor, norm: _Affine) -> torch.Tensor:
        return functional.layer_norm(tokens, (self._width,), *norm, self._eps)


def _has_cublas(device: torch.device) -> bool:
    return device.type == "cuda"


def _has_onednn(device: torch.device, dtype: torch.dtype) -> bool:
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _worthwhile_padding(tokens: int, device: torch.device, dtype: torch.dtype) -> int:
    """How many tokens to add to an image's."""
    padding = -tokens % _TILE_TOKENS
    on_tiles = device.type == "cpu" and dtype == torch.bfloat16
    return padding if on_tiles and padding <= _MOST_PADDING * tokens else 0


def _with_bias_as_unit(up: _Affine, down: _Affine) -> tuple[_Affine, _Affine]:
    """The two layers with more hidden units, of which one always has the same value and carries `down`'s bias.

    Then `down` is a plain product, and that of cuBLAS can add to what is there already: to the residual.
    """
    hidden = len(up.bias)
    more = -(hidden + 1) % _CUDA_ROW + 1
    up_weight, up_bias = functional.pad(up.weight, (0, 0, 0, more)), functional.pad(up.bias, (0, more))
    up_bias[hidden] = _PASSES_GELU
    down_weight = functional.pad(down.weight, (0, more))
    down_weight[:, hidden] = down.bias / _PASSES_GELU
    return _Affine(up_weight, up_bias), _Affine(down_weight, torch.zeros_like(down.bias))
