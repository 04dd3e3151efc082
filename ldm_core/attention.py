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
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_core.kernels.requirements import require_triton
from ldm_core.nn.cpu import chunks_win_in_bfloat16, sdpa_runs_in_bfloat16
from ldm_core.nn.kept_context import KeptContext
from ldm_core.nn.linear import Linear
from ldm_core.nn.transforms import forward_mode, transforming
from ldm_core.support.modules import named_modules

CHUNK_BYTES = 64 * 2**20  # the largest block of attention weights that "chunked" makes
MIN_CHUNKED_KEYS = 256  # with fewer, a block is too small to pay for three calls


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
    differentiable = torch.is_grad_enabled() or transforming()
    in_place = q.device.type == "cpu" and q.dtype != torch.float16 and not (causal or differentiable)
    row_bytes = batch * heads * k.shape[-2] * (q.element_size() if in_place else 4)
    rows = min(n, max(1, CHUNK_BYTES // row_bytes))
    if in_place:
        return _chunks_in_place(q, k, v, rows)
    blocks = [
        attention_weights(q[:, :, i : i + rows], k, causal=causal, first=i) @ v for i in range(0, n, rows)
    ]
    return torch.cat(blocks, dim=-2)


def _chunks_in_place(q: Tensor, k: Tensor, v: Tensor, rows: int) -> Tensor:
    """`chunked_attention` with one block of memory for all weights: fresh memory costs a CPU page faults.

    The CPU's softmax computes in float32 whatever it reads and writes.
    """
    batch, heads, n, size = q.shape
    queries, keys, values = q.flatten(0, 1), k.flatten(0, 1).mT, v.flatten(0, 1)
    out = q.new_empty(batch * heads, n, size)
    block = q.new_empty(batch * heads, rows, k.shape[-2])
    for first in range(0, n, rows):
        part = queries[:, first : first + rows]
        weights = block[:, : part.shape[1]]
        torch.baddbmm(weights, part, keys, beta=0, alpha=size**-0.5, out=weights)
        torch.softmax(weights, dim=-1, out=weights)
        torch.bmm(weights, values, out=out[:, first : first + rows])
    return out.unflatten(0, (batch, heads))


def triton_attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """FlashAttention in Triton, which is imported at the first call. ValueError where it cannot run."""
    require_triton("attention backend 'triton'")
    from ldm_core.kernels.flash_attention import flash_attention

    return flash_attention(q, k, v, causal=causal)


def auto_attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """SDPA, but chunked in bfloat16 on a CPU where that is faster.

    In float32 SDPA is the faster one (docs/performance.md). Not "triton", even where that could run: nobody
    has measured yet which of the two is faster.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        long = k.shape[-2] >= MIN_CHUNKED_KEYS and not (causal or torch.is_grad_enabled())
        if (long and chunks_win_in_bfloat16()) or not sdpa_runs_in_bfloat16():
            return chunked_attention(q, k, v, causal=causal)
    if forward_mode():  # fused kernels have no forward-mode derivative
        return math_attention(q, k, v, causal=causal)
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
        self.to_q = Linear(channels, channels, bias=qkv_bias)
        self.to_k = Linear(context_channels, channels, bias=qkv_bias)
        self.to_v = Linear(context_channels, channels, bias=qkv_bias)
        self.to_out = Linear(channels, channels)

    def forward(self, x: Tensor, context: Tensor | KeptContext | None = None) -> Tensor:
        if isinstance(context, KeptContext):
            k, v = context.keys_and_values(self)
        else:
            k, v = self.keys_and_values(x if context is None else context)
        out = self.attention(self._split(self.to_q(x)), k, v, causal=self.causal)
        return self.to_out(out.transpose(1, 2).flatten(2))  # (B, heads, N, D) -> (B, N, heads * D)

    def keys_and_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """(B, M, context_channels) -> keys and values, each (B, heads, M, D)."""
        return self._split(self.to_k(context)), self._split(self.to_v(context))

    def projections_are_plain(self) -> bool:
        """Whether keys and values follow from the context and the weights alone, without hooks."""
        return all(
            type(layer) is Linear and not layer._forward_hooks and not layer._forward_pre_hooks
            for layer in (self.to_k, self.to_v)
        )

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, N, heads * D) -> (B, heads, N, D)


def attention_layers(model: Any) -> Iterator[tuple[str, MultiHeadAttention]]:
    """The attention layers of a module, or of a dataclass of modules, with their dotted names."""
    for name, module in named_modules(model):
        if isinstance(module, MultiHeadAttention):
            yield name, module


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
