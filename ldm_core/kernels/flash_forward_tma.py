"""The attention kernel of `flash_forward.py` for heads of at most 64, with tiles that the hardware addresses.

The formula, the loop and the letters are those of `flash_forward.py`. From Hopper on, a GPU has a unit that
copies a tile, given a descriptor of the tensor (shape, strides, size of a tile) and the tile's position: the
tensor memory accelerator (TMA; NVIDIA H100 architecture white paper). That changes three things:

* The addresses and masks of loads take neither instructions nor registers, so that three programs fit on a
  multiprocessor, where one computes its softmax while another multiplies.
* Columns past D and rows past the end are read as zeros and not written. A tile can therefore be padded to 64
  columns, and q k^T is one product, where WIDE and REST need two that wait for each other.
* A zero is not minus infinity: the last block of keys, if it is not complete, is computed apart and masked.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ldm_core.kernels.flash_forward import online_softmax


@triton.jit
def tile_of(tensor, row, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """The rows row..row + ROWS of this program's head: (ROWS, WIDTH), zero outside the tensor."""
    return tensor.load([tl.program_id(2), tl.program_id(1), row, 0]).reshape(ROWS, WIDTH)


@triton.jit
def take_keys(
    result, m, total, queries, k, v, start, m_keys, scale,
    BLOCK_K: tl.constexpr, WIDTH: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Accumulate one block of keys and values, from row `start`. A MASKED one has rows past the last key."""
    keys = tile_of(k, start, BLOCK_K, WIDTH)
    scores = tl.dot(queries, keys.T)  # (BLOCK_Q, BLOCK_K)
    if MASKED:
        scores = tl.where(start + tl.arange(0, BLOCK_K)[None, :] < m_keys, scores, float("-inf"))
    p, shrink, m, total = online_softmax(scores, m, total, scale)
    values = tile_of(v, start, BLOCK_K, WIDTH)
    return tl.dot(p.to(values.dtype), values, result * shrink[:, None]), m, total


@triton.jit
def flash_forward_tma(
    q, k, v, out, lse, n, m_keys, scale,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One block of queries of one head: grid (N / BLOCK_Q, heads, B). `scale` is log2(e) / sqrt(D).

    q, k, v and out are descriptors of tensors (B, heads, rows, D) with tiles of (1, 1, BLOCK_Q or BLOCK_K,
    WIDTH); `lse` (B, heads, N) gets log2 of the sum of 2^score.
    """
    first = tl.program_id(0) * BLOCK_Q
    queries = tile_of(q, first, BLOCK_Q, WIDTH)
    result = tl.zeros([BLOCK_Q, WIDTH], tl.float32)
    m = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)

    whole = m_keys // BLOCK_K * BLOCK_K
    for start in range(0, whole, BLOCK_K):
        result, m, total = take_keys(
            result, m, total, queries, k, v, start, m_keys, scale, BLOCK_K, WIDTH, False
        )
    if whole < m_keys:
        result, m, total = take_keys(
            result, m, total, queries, k, v, whole, m_keys, scale, BLOCK_K, WIDTH, True
        )

    result = (result / total[:, None]).to(out.dtype).reshape(1, 1, BLOCK_Q, WIDTH)
    out.store([tl.program_id(2), tl.program_id(1), first, 0], result)
    rows = first + tl.arange(0, BLOCK_Q)
    head = tl.program_id(2).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    tl.store(lse + head * n + rows, m + tl.log2(total), mask=rows < n)
