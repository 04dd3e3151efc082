"""The backends of attention: the formula, PyTorch's kernels, blocks of queries, and the fastest of these.

    math      the formula as written; stores the whole (N, M) matrix
    sdpa      torch.nn.functional.scaled_dot_product_attention
    chunked   the formula for a block of queries at a time; bounded memory on any device
    auto      the fastest of them for the given tensors

Each is a function of q (B, heads, N, D), k and v (B, heads, M, D) -> (B, heads, N, D), as described by
`ldm_core.attention.AttentionFunction`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_core.nn.cpu import chunks_win_in_bfloat16, sdpa_runs_in_bfloat16
from ldm_core.nn.transforms import forward_mode, transforming

CHUNK_BYTES = 64 * 2**20  # the largest block of attention weights that "chunked" allocates
CACHED_BYTES = 8 * 2**20  # the same where one buffer is used again for all blocks, and should stay in a cache
MIN_ROWS = 64  # of such a block
MANY_KEYS = 256  # from which the keys and values are laid out anew for the products
MIN_CHUNKED_KEYS = 16  # with fewer keys, three calls per block cost more than they save


def attention_weights(
    q: Tensor, k: Tensor, *, causal: bool = False, first: int = 0, hidden: Tensor | None = None
) -> Tensor:
    """softmax(q k^T / sqrt(D)): (B, heads, N, M). `first` is the position of q's first row.

    hidden: (B, M), True for keys that get no weight; every query must see another one.

    The softmax is computed in float32 at least, because the sum over thousands of keys needs more than 8 or
    11 bits. float16 scores are computed in float32 too, because a product of large queries and keys can
    exceed float16's maximum of 65,504.
    """
    dtype = q.dtype
    if dtype == torch.float16:
        q, k = q.float(), k.float()
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if causal:
        n, m = scores.shape[-2:]
        later = torch.ones(n, m, dtype=torch.bool, device=q.device).triu(1 + first)
        scores = scores.masked_fill(later, float("-inf"))
    if hidden is not None:
        scores = scores.masked_fill(hidden[:, None, None], float("-inf"))
    wide = torch.promote_types(scores.dtype, torch.float32)
    return scores.softmax(dim=-1, dtype=wide).to(dtype)


def math_attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """The formula as written. Memory is proportional to N times M."""
    return attention_weights(q, k, causal=causal) @ v


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """PyTorch's `scaled_dot_product_attention`, which uses a fused kernel if the device has one."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


def chunked_attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """The formula for a block of queries at a time. Exact: the softmax of a query needs no other query."""
    differentiable = torch.is_grad_enabled() or transforming()
    if q.device.type == "cpu" and q.dtype != torch.float16 and not (causal or differentiable):
        return _chunks_in_place(q, k, v)
    batch, heads, n, _ = q.shape
    rows = min(n, max(1, CHUNK_BYTES // (batch * heads * k.shape[-2] * 4)))
    blocks = [
        attention_weights(q[:, :, i : i + rows], k, causal=causal, first=i) @ v for i in range(0, n, rows)
    ]
    return torch.cat(blocks, dim=-2)


def _chunks_in_place(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`chunked_attention` with one buffer for all weights, because new memory causes page faults on a CPU.

    A block has all queries of some heads, or some queries of one head a thread. On a CPU, softmax computes in
    float32 for any input and output dtype.
    """
    batch, heads, n, size = q.shape
    m = k.shape[-2]
    queries, keys = q.flatten(0, 1), k.flatten(0, 1).mT
    # Products are faster for keys that are contiguous, and for a multiple of 16 columns of values.
    extra = -size % 16 if m > MANY_KEYS else 0
    keys = keys.contiguous() if m > MANY_KEYS else keys
    values = (F.pad(v, (0, extra)) if extra else v).flatten(0, 1)
    row_bytes = m * q.element_size()
    together = min(batch * heads, max(torch.get_num_threads(), CACHED_BYTES // (n * row_bytes)))
    rows = min(n, max(MIN_ROWS, CACHED_BYTES // (together * row_bytes)))
    out = q.new_empty(batch * heads, n, size + extra)
    block = q.new_empty(together, rows, m)
    for head in range(0, batch * heads, together):
        here = slice(head, head + together)
        for first in range(0, n, rows):
            part = queries[here, first : first + rows]
            weights = block[: len(part), : part.shape[1]]
            torch.baddbmm(weights, part, keys[here], beta=0, alpha=size**-0.5, out=weights)
            torch.softmax(weights, dim=-1, out=weights)
            torch.bmm(weights, values[here], out=out[here, first : first + rows])
    return out[..., :size].unflatten(0, (batch, heads))


def auto_attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """SDPA, or chunked attention in bfloat16 on a CPU on which it is faster.

    In float32 SDPA is faster (docs/performance.md). "triton" is never chosen, because it has not been
    compared with SDPA on a GPU yet.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        long = k.shape[-2] >= MIN_CHUNKED_KEYS and not (causal or torch.is_grad_enabled())
        if (long and chunks_win_in_bfloat16()) or not sdpa_runs_in_bfloat16():
            return chunked_attention(q, k, v, causal=causal)
    if forward_mode():  # fused kernels have no forward-mode derivative
        return math_attention(q, k, v, causal=causal)
    return sdpa_attention(q, k, v, causal=causal)
