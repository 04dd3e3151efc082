"""How attention is computed: by the formula, by PyTorch's kernels, in blocks, or by the fastest of these.

    math      the formula as it is written; holds the whole (N, M) matrix
    sdpa      torch.nn.functional.scaled_dot_product_attention
    chunked   the formula for a block of queries at a time; bounded memory on any device
    auto      the fastest of them for the tensors at hand

Each is a function of q (B, heads, N, D), k and v (B, heads, M, D) -> (B, heads, N, D), as described by
`ldm_core.attention.AttentionFunction`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_core.nn.cpu import chunks_win_in_bfloat16, sdpa_runs_in_bfloat16
from ldm_core.nn.transforms import forward_mode, transforming

CHUNK_BYTES = 64 * 2**20  # the largest block of attention weights that "chunked" makes
MIN_CHUNKED_KEYS = 256  # with fewer, a block is too small to pay for three calls


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
