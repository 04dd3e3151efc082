"""The one door to attention: softmax(q k^T / sqrt(D)) v (Vaswani et al. 2017, arXiv:1706.03762, equation 1).

Every attention layer of the package holds a function of the form `attention(q, k, v, *, causal=False)`
and calls nothing else, so `set_attention` exchanges the computation without touching a network:

    math      the formula as it is written; holds the whole (N, M) matrix
    sdpa      torch.nn.functional.scaled_dot_product_attention
    chunked   the formula for a block of queries at a time; bounded memory on any device
    triton    this package's own GPU kernel, which makes no (N, M) matrix (kernels/flash_attention.py)
    auto      the best of them for the tensors at hand

CompVis's counterparts are `CrossAttention` and `MemoryEfficientCrossAttention`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_core.kernels import require_triton

CHUNK_BYTES = 64 * 2**20  # the largest block of float32 attention weights that "chunked" makes


class AttentionFunction(Protocol):
    """q (B, heads, N, D), k and v (B, heads, M, D), any strides -> (B, heads, N, D) in q's dtype.

    With `causal`, N must equal M, and position i sees positions 0..i.
    """

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor: ...


def attention_weights(q: Tensor, k: Tensor, *, causal: bool = False, first: int = 0) -> Tensor:
    """softmax(q k^T / sqrt(D)): (B, heads, N, M). `first` is the position of q's first row.

    The softmax is taken in float32 at least: its sum over thousands of keys does not fit in 8 or 11 bits.
    Float16 scores are, too: a product of large queries and keys passes float16's 65,504.
    """
    dtype = q.dtype
    if dtype == torch.float16:
        q, k = q.float(), k.float()
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if causal:
        n, m = scores.shape[-2:]
        hidden = torch.ones(n, m, dtype=torch.bool, device=q.device).triu(1 + first)
        scores = scores.masked_fill(hidden, float("-inf"))
    wide = torch.promote_types(scores.dtype, torch.float32)
    return scores.softmax(dim=-1, dtype=wide).to(dtype)


def math_attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """The formula as it is written. Memory grows as N times M."""
    return attention_weights(q, k, causal=causal) @ v


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """PyTorch's own, which picks a fused kernel where the device has one."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


def chunked_attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """A block of queries at a time: exact, since the softmax of one query needs no other query."""
    batch, heads, n, _ = q.shape
    rows = max(1, CHUNK_BYTES // (4 * batch * heads * k.shape[-2]))
    blocks = [
        attention_weights(q[:, :, i : i + rows], k, causal=causal, first=i) @ v for i in range(0, n, rows)
    ]
    return torch.cat(blocks, dim=-2)


def triton_attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """FlashAttention in Triton, which is imported at the first call. ValueError where it cannot run."""
    require_triton("attention backend 'triton'")
    from ldm_core.kernels.flash_attention import flash_attention

    return flash_attention(q, k, v, causal=causal)


def auto_attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """SDPA, which picks a fused kernel that needs no N x M matrix wherever PyTorch has one for the device.

    Not "triton", even where that could run: nobody has measured yet which of the two is faster.
    """
    return sdpa_attention(q, k, v, causal=causal)


attention: AttentionFunction = auto_attention

BACKENDS: dict[str, AttentionFunction] = {
    "math": math_attention,
    "sdpa": sdpa_attention,
    "chunked": chunked_attention,
    "triton": triton_attention,
    "auto": auto_attention,
}


class MultiHeadAttention(nn.Module):
    """Projections to queries, keys and values, attention within each head, and a projection back.

    x (B, N, channels), context (B, M, context_channels) or None for self-attention -> (B, N, channels).
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        context_channels: int | None = None,
        qkv_bias: bool = False,
        causal: bool = False,
    ) -> None:
        super().__init__()
        context_channels = channels if context_channels is None else context_channels
        self.heads = heads
        self.causal = causal
        self.attention: AttentionFunction = attention
        self.to_q = nn.Linear(channels, channels, bias=qkv_bias)
        self.to_k = nn.Linear(context_channels, channels, bias=qkv_bias)
        self.to_v = nn.Linear(context_channels, channels, bias=qkv_bias)
        self.to_out = nn.Linear(channels, channels)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        q = self._split(self.to_q(x))
        k = self._split(self.to_k(context))
        v = self._split(self.to_v(context))
        out = self.attention(q, k, v, causal=self.causal)
        return self.to_out(out.transpose(1, 2).flatten(2))  # (B, heads, N, D) -> (B, N, heads * D)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, N, heads * D) -> (B, heads, N, D)


def attention_layers(model: Any) -> Iterator[tuple[str, MultiHeadAttention]]:
    """The attention layers of a module, or of a dataclass of modules, with their dotted names."""
    if isinstance(model, nn.Module):
        for name, module in model.named_modules():
            if isinstance(module, MultiHeadAttention):
                yield name, module
    elif is_dataclass(model):
        for part in fields(model):
            value = getattr(model, part.name)
            if isinstance(value, nn.Module):
                yield from ((f"{part.name}.{name}", layer) for name, layer in attention_layers(value))
    else:
        raise ValueError(f"expected a torch module or a dataclass of them, not {type(model).__name__}")


def set_attention(model: Any, backend: str | AttentionFunction) -> None:
    """Make every attention layer of `model` use a backend, by name, or a function of one's own.

    `model` is a module or a `LatentDiffusion`. Raises ValueError for an unknown name, for a backend that
    cannot run on this machine, or for no layer.
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
