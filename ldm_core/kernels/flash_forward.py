"""The attention kernel: softmax(q k^T / sqrt(D)) v without an N x M matrix in memory.

FlashAttention (Dao et al. 2022, arXiv:2205.14135, algorithm 1) with the loop order of FlashAttention-2 (Dao
2023, arXiv:2307.08691, algorithm 1): each program computes a block of queries and loops over the keys. The
running maximum m, sum l (here `total`) and result are those of the online softmax (Milakov and Gimelshein
2018, arXiv:1805.02867, algorithm 3). They are float32 and use powers of two, exp(x) = exp2(x log2 e), because
exp2 is the hardware instruction.

The sides of a tile must be powers of two, but head sizes of 40, 80 and 160 are not. Each tile is therefore
split along D into a WIDE and a REST part (40 = 32 + 8 of 16, 80 = 64 + 16), and a product over D is the sum
of both.
Letters: B batch, N queries, M keys, D head size.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def head_of(base, stride_b, stride_h, UNIT: tl.constexpr):
    """Pointer to this program's image and head.

    The offset of the image is 64-bit, because a batch can be large. That of the head is not, which would cost
    registers; `_strides` refuses heads that are so far apart.
    """
    return base + (tl.program_id(2).to(tl.int64) * stride_b + tl.program_id(1) * stride_h) * UNIT


@triton.jit
def load_columns(
    base,
    rows,
    stride,
    length,
    FIRST: tl.constexpr,
    WIDTH: tl.constexpr,
    D: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Load columns FIRST..FIRST + WIDTH: (rows, WIDTH), zero past D and, if MASKED, past `length`."""
    columns = FIRST + tl.arange(0, WIDTH)
    pointers = base + rows[:, None] * stride + columns[None, :]
    if MASKED and FIRST + WIDTH > D:
        tile = tl.load(pointers, mask=(rows[:, None] < length) & (columns[None, :] < D), other=0.0)
    elif MASKED:
        tile = tl.load(pointers, mask=rows[:, None] < length, other=0.0)
    elif FIRST + WIDTH > D:
        tile = tl.load(pointers, mask=columns[None, :] < D, other=0.0)
    else:
        tile = tl.load(pointers)
    return tile


@triton.jit
def store_columns(
    tile, base, rows, stride, length, FIRST: tl.constexpr, WIDTH: tl.constexpr, D: tl.constexpr
):
    """The inverse of `load_columns`; always masked, since it runs only once, after the loop."""
    columns = FIRST + tl.arange(0, WIDTH)
    inside = (rows[:, None] < length) & (columns[None, :] < D)
    tl.store(base + rows[:, None] * stride + columns[None, :], tile.to(base.dtype.element_ty), mask=inside)


@triton.jit
def online_softmax(scores, m, total, scale):
    """The weights of one more block of scores, the factor for sums so far, and the new maximum and sum.

    Sums under an older maximum are rescaled by 2^(old - new), which is `shrink`.
    """
    m_new = tl.maximum(m, tl.max(scores, axis=1) * scale)
    shrink = tl.exp2(m - m_new)
    p = tl.exp2(scores * scale - m_new[:, None])
    return p, shrink, m_new, total * shrink + tl.sum(p, axis=1)


@triton.jit
def walk_keys(
    out_wide, out_rest, m, total, q_wide, q_rest, k, v, k_stride, v_stride, rows, begin, end, m_keys, scale,
    D: tl.constexpr, WIDE: tl.constexpr, REST: tl.constexpr,
    BLOCK_K: tl.constexpr, CAUSAL: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Accumulate the keys and values begin..end, one block at a time. MASKED blocks contain hidden keys."""
    for start in range(begin, end, BLOCK_K):
        keys = start + tl.arange(0, BLOCK_K)
        k_wide = load_columns(k, keys, k_stride, m_keys, 0, WIDE, D, MASKED)
        scores = tl.dot(q_wide, tl.trans(k_wide), input_precision="ieee")  # (BLOCK_Q, BLOCK_K)
        if REST > 0:
            k_rest = load_columns(k, keys, k_stride, m_keys, WIDE, REST, D, MASKED)
            scores = tl.dot(q_rest, tl.trans(k_rest), scores, input_precision="ieee")
        if MASKED:
            seen = keys[None, :] < m_keys
            if CAUSAL:
                seen = seen & (keys[None, :] <= rows[:, None])
            scores = tl.where(seen, scores, float("-inf"))

        p, shrink, m, total = online_softmax(scores, m, total, scale)
        v_wide = load_columns(v, keys, v_stride, m_keys, 0, WIDE, D, MASKED)
        p = p.to(v_wide.dtype)
        out_wide = tl.dot(p, v_wide, out_wide * shrink[:, None], input_precision="ieee")
        if REST > 0:
            v_rest = load_columns(v, keys, v_stride, m_keys, WIDE, REST, D, MASKED)
            out_rest = tl.dot(p, v_rest, out_rest * shrink[:, None], input_precision="ieee")
    return out_wide, out_rest, m, total


@triton.jit
def flash_forward(
    q, k, v, out, lse,
    q_b, q_h, q_n, k_b, k_h, k_m, v_b, v_h, v_m, o_b, o_h, o_n,  # strides, in UNITs; D's is 1 element
    n, m_keys, scale,
    D: tl.constexpr, WIDE: tl.constexpr, REST: tl.constexpr, UNIT: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    """One block of queries of one head: grid (N / BLOCK_Q, heads, B). `scale` is log2(e) / sqrt(D).

    `lse` (B, heads, N) gets log2 of the sum of 2^score, which is all that the backward pass needs of it.
    Strides come in UNITs of up to 8 elements, so that the compiler knows that 16 bytes can be loaded at once.
    """
    q, q_n = head_of(q, q_b, q_h, UNIT), q_n * UNIT
    k, k_m = head_of(k, k_b, k_h, UNIT), k_m * UNIT
    v, v_m = head_of(v, v_b, v_h, UNIT), v_m * UNIT
    out, o_n = head_of(out, o_b, o_h, UNIT), o_n * UNIT
    lse = head_of(lse, tl.num_programs(1) * n, n, 1)
    first = tl.program_id(0) * BLOCK_Q
    rows = first + tl.arange(0, BLOCK_Q)

    q_wide, q_rest = load_columns(q, rows, q_n, n, 0, WIDE, D, True), 0.0
    out_wide, out_rest = tl.zeros([BLOCK_Q, WIDE], tl.float32), 0.0
    if REST > 0:
        q_rest = load_columns(q, rows, q_n, n, WIDE, REST, D, True)
        out_rest = tl.zeros([BLOCK_Q, REST], tl.float32)
    m = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)

    # complete blocks first, which need no mask, then the blocks that cross the end or the diagonal
    end = m_keys
    whole = m_keys // BLOCK_K * BLOCK_K
    if CAUSAL:
        end = tl.minimum(first + BLOCK_Q, m_keys)
        whole = first // BLOCK_K * BLOCK_K
    out_wide, out_rest, m, total = walk_keys(
        out_wide, out_rest, m, total, q_wide, q_rest, k, v, k_m, v_m, rows, 0, whole, m_keys, scale,
        D, WIDE, REST, BLOCK_K, CAUSAL, False,
    )  # fmt: skip
    out_wide, out_rest, m, total = walk_keys(
        out_wide, out_rest, m, total, q_wide, q_rest, k, v, k_m, v_m, rows, whole, end, m_keys, scale,
        D, WIDE, REST, BLOCK_K, CAUSAL, True,
    )  # fmt: skip

    store_columns(out_wide / total[:, None], out, rows, o_n, n, 0, WIDE, D)
    if REST > 0:
        store_columns(out_rest / total[:, None], out, rows, o_n, n, WIDE, REST, D)
    tl.store(lse + rows, m + tl.log2(total), mask=rows < n)
