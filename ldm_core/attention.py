"""Attention: softmax(q k^T / sqrt(D)) v (Vaswani et al. 2017, arXiv:1706.03762, equation 1), and its layer.

Every attention layer of the package holds a function `attention(q, k, v, *, causal=False)` and computes its
output with it, so that `set_attention` can change the computation without changing a network:

    math      the formula as written; stores the whole (N, M) matrix
    sdpa      torch.nn.functional.scaled_dot_product_attention
    chunked   the formula for a block of queries at a time; bounded memory on any device
    triton    this package's GPU kernel, which stores no (N, M) matrix (kernels/flash_attention.py)
    auto      the fastest of them for the given tensors

CompVis's counterparts are `CrossAttention` and `MemoryEfficientCrossAttention`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from torch import Tensor, nn

from ldm_core.kernels import triton_attention
from ldm_core.kernels.requirements import require_triton
from ldm_core.nn.attention_backends import (
    attention_weights,
    auto_attention,
    chunked_attention,
    math_attention,
    sdpa_attention,
)
from ldm_core.nn.kept_context import KeptContext
from ldm_core.nn.linear import Linear, is_plain
from ldm_core.support.modules import named_modules


class AttentionFunction(Protocol):
    """q (B, heads, N, D), k and v (B, heads, M, D), any strides -> (B, heads, N, D) in q's dtype.

    With `causal`, N must equal M, and position i attends to positions 0..i.
    """

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor: ...


def attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(D)) v by the fastest backend, which layers use until `set_attention` sets another.

    q (B, heads, N, D), k and v (B, heads, M, D) -> (B, heads, N, D) in q's dtype. See `AttentionFunction`.
    """
    return auto_attention(q, k, v, causal=causal)


BACKENDS: dict[str, AttentionFunction] = {
    "math": math_attention,
    "sdpa": sdpa_attention,
    "chunked": chunked_attention,
    "triton": triton_attention,
    "auto": attention,
}


class MultiHeadAttention(nn.Module):
    """Projections to queries, keys and values, attention within each head, and a projection back.

    With a context it is the cross-attention of latent diffusion (arXiv:2112.10752, section 3.3).

    x (B, N, channels), context (B, M, context_channels) or None for self-attention -> (B, N, channels).
    inner_channels: of all heads together, heads * D; by default `channels`.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        context_channels: int | None = None,
        inner_channels: int | None = None,
        qkv_bias: bool = False,
        causal: bool = False,
    ) -> None:
        super().__init__()
        context_channels = channels if context_channels is None else context_channels
        inner_channels = channels if inner_channels is None else inner_channels
        self.heads = heads
        self.causal = causal
        self.attention: AttentionFunction = attention
        self.to_q = Linear(channels, inner_channels, bias=qkv_bias)
        self.to_k = Linear(context_channels, inner_channels, bias=qkv_bias)
        self.to_v = Linear(context_channels, inner_channels, bias=qkv_bias)
        self.to_out = Linear(inner_channels, channels)

    def forward(
        self, x: Tensor, context: Tensor | KeptContext | None = None, hidden: Tensor | None = None
    ) -> Tensor:
        """hidden: (B, M), True for positions that get no weight, by the formula whatever the backend is."""
        if isinstance(context, KeptContext):
            k, v = context.keys_and_values(self)
        else:
            k, v = self.keys_and_values(x if context is None else context)
        q = self._split(self.to_q(x))
        if hidden is None:
            out = self.attention(q, k, v, causal=self.causal)
        else:
            out = attention_weights(q, k, causal=self.causal, hidden=hidden) @ v
        return self.to_out(out.transpose(1, 2).flatten(2))  # (B, heads, N, D) -> (B, N, heads * D)

    def keys_and_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """(B, M, context_channels) -> keys and values, each (B, heads, M, D)."""
        return self._split(self.to_k(context)), self._split(self.to_v(context))

    def projections_are_plain(self) -> bool:
        """Whether keys and values follow from the context and the weights alone, without hooks."""
        return is_plain(self.to_k) and is_plain(self.to_v)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, N, heads * D) -> (B, heads, N, D)


def attention_layers(model: Any) -> Iterator[tuple[str, MultiHeadAttention]]:
    """The attention layers of a module, or of a dataclass of modules, with their dotted names."""
    for name, module in named_modules(model):
        if isinstance(module, MultiHeadAttention):
            yield name, module


def set_attention(model: Any, backend: str | AttentionFunction) -> None:
    """Make every attention layer of `model` use a backend, by name, or a given function.

    model: a module or a `LatentDiffusion`. Raises ValueError for an unknown name, for a backend that cannot
    run on this machine, or if the model has no attention layer of this package.
    """
    if isinstance(backend, str):
        if backend not in BACKENDS:
            raise ValueError(f"unknown attention backend {backend!r}; expected one of {', '.join(BACKENDS)}")
        if backend == "triton":
            require_triton("attention backend 'triton'")
        backend = BACKENDS[backend]
    layers = [layer for _, layer in attention_layers(model)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no attention layers of this package")
    for layer in layers:
        layer.attention = backend
