"""The gradient of attention, which recomputes the weights from q, k and one number per query.

FlashAttention-2 (Dao 2023, arXiv:2307.08691, algorithm 2), as two kernels, so that no atomic additions are
needed and results are bit-for-bit reproducible. With s = q k^T / sqrt(D), P = softmax(s) and dO the gradient
of O:

    dV = P^T dO          dP = dO V^T          dS = P * (dP - delta),  delta = rowsum(dO * O)
    dQ = dS K / sqrt(D)  dK = dS^T Q / sqrt(D)

P is recomputed from `lse`, which the forward pass saves: P = 2^(s log2 e - lse). Tiles are split along D as
in the forward pass.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ldm_core.kernels.flash_forward import head_of, load_columns, store_columns


@triton.jit
def walk_keys_back(
    grad_wide, grad_rest, q_wide, q_rest, o_wide, o_rest, k, v, k_m, v_m, rows, row_lse, row_delta,
    end, m_keys, scale,
    D: tl.constexpr, WIDE: tl.constexpr, REST: tl.constexpr, BLOCK_K: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    """Accumulate the contribution of the keys 0..end to dQ of one block of queries."""
    for start in range(0, end, BLOCK_K):
        keys = start + tl.arange(0, BLOCK_K)
        k_wide = load_columns(k, keys, k_m, m_keys, 0, WIDE, D, True)
        v_wide = load_columns(v, keys, v_m, m_keys, 0, WIDE, D, True)
        s = tl.dot(q_wide, tl.trans(k_wide), input_precision="ieee")  # (BLOCK_Q, BLOCK_K)
        d_p = tl.dot(o_wide, tl.trans(v_wide), input_precision="ieee")
        if REST > 0:
            k_rest = load_columns(k, keys, k_m, m_keys, WIDE, REST, D, True)
            v_rest = load_columns(v, keys, v_m, m_keys, WIDE, REST, D, True)
            s = tl.dot(q_rest, tl.trans(k_rest), s, input_precision="ieee")
            d_p = tl.dot(o_rest, tl.trans(v_rest), d_p, input_precision="ieee")
        seen = keys[None, :] < m_keys
        if CAUSAL:
            seen = seen & (keys[None, :] <= rows[:, None])
        p = tl.where(seen, tl.exp2(s * scale - row_lse[:, None]), 0.0)
        d_s = (p * (d_p - row_delta[:, None])).to(k_wide.dtype)
        grad_wide = tl.dot(d_s, k_wide, grad_wide, input_precision="ieee")
        if REST > 0:
            grad_rest = tl.dot(d_s, k_rest, grad_rest, input_precision="ieee")
    return grad_wide, grad_rest


@triton.jit
def flash_backward_queries(
    q, k, v, d_out, d_q, lse, delta,
    q_b, q_h, q_n, k_b, k_h, k_m, v_b, v_h, v_m, o_b, o_h, o_n, g_b, g_h, g_n,  # strides in UNITs
    n, m_keys, scale, root,
    D: tl.constexpr, WIDE: tl.constexpr, REST: tl.constexpr, UNIT: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    """dQ of one block of queries: grid (N / BLOCK_Q, heads, B). g: the strides of dQ; `root`: 1 / sqrt(D)."""
    q, q_n = head_of(q, q_b, q_h, UNIT), q_n * UNIT
    k, k_m = head_of(k, k_b, k_h, UNIT), k_m * UNIT
    v, v_m = head_of(v, v_b, v_h, UNIT), v_m * UNIT
    d_out, o_n = head_of(d_out, o_b, o_h, UNIT), o_n * UNIT
    d_q, g_n = head_of(d_q, g_b, g_h, UNIT), g_n * UNIT
    lse = head_of(lse, tl.num_programs(1) * n, n, 1)
    delta = head_of(delta, tl.num_programs(1) * n, n, 1)
    first = tl.program_id(0) * BLOCK_Q
    rows = first + tl.arange(0, BLOCK_Q)
    row_lse = tl.load(lse + rows, mask=rows < n, other=float("inf"))
    row_delta = tl.load(delta + rows, mask=rows < n, other=0.0)

    q_wide, q_rest = load_columns(q, rows, q_n, n, 0, WIDE, D, True), 0.0
    o_wide, o_rest = load_columns(d_out, rows, o_n, n, 0, WIDE, D, True), 0.0
    grad_wide, grad_rest = tl.zeros([BLOCK_Q, WIDE], tl.float32), 0.0
    if REST > 0:
        q_rest = load_columns(q, rows, q_n, n, WIDE, REST, D, True)
        o_rest = load_columns(d_out, rows, o_n, n, WIDE, REST, D, True)
        grad_rest = tl.zeros([BLOCK_Q, REST], tl.float32)

    end = m_keys
    if CAUSAL:
        end = tl.minimum(first + BLOCK_Q, m_keys)
    grad_wide, grad_rest = walk_keys_back(
        grad_wide, grad_rest, q_wide, q_rest, o_wide, o_rest, k, v, k_m, v_m, rows, row_lse, row_delta,
        end, m_keys, scale, D, WIDE, REST, BLOCK_K, CAUSAL,
    )  # fmt: skip
    store_columns(grad_wide * root, d_q, rows, g_n, n, 0, WIDE, D)
    if REST > 0:
        store_columns(grad_rest * root, d_q, rows, g_n, n, WIDE, REST, D)


@triton.jit
def walk_queries(
    dk_wide, dk_rest, dv_wide, dv_rest, k_wide, k_rest, v_wide, v_rest, q, d_out, lse, delta,
    q_n, o_n, keys, begin, n, scale,
    D: tl.constexpr, WIDE: tl.constexpr, REST: tl.constexpr, BLOCK_Q: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    """Accumulate the contribution of the queries begin..n to dK and dV of one block of keys."""
    for start in range(begin, n, BLOCK_Q):
        rows = start + tl.arange(0, BLOCK_Q)
        q_wide = load_columns(q, rows, q_n, n, 0, WIDE, D, True)
        o_wide = load_columns(d_out, rows, o_n, n, 0, WIDE, D, True)
        s = tl.dot(k_wide, tl.trans(q_wide), input_precision="ieee")  # (BLOCK_K, BLOCK_Q)
        d_p = tl.dot(v_wide, tl.trans(o_wide), input_precision="ieee")
        if REST > 0:
            q_rest = load_columns(q, rows, q_n, n, WIDE, REST, D, True)
            o_rest = load_columns(d_out, rows, o_n, n, WIDE, REST, D, True)
            s = tl.dot(k_rest, tl.trans(q_rest), s, input_precision="ieee")
            d_p = tl.dot(v_rest, tl.trans(o_rest), d_p, input_precision="ieee")
        # a row past the end has lse = inf, and therefore weight 0
        row_lse = tl.load(lse + rows, mask=rows < n, other=float("inf"))
        row_delta = tl.load(delta + rows, mask=rows < n, other=0.0)
        p = tl.exp2(s * scale - row_lse[None, :])
        if CAUSAL:
            p = tl.where(keys[:, None] <= rows[None, :], p, 0.0)
        d_s = (p * (d_p - row_delta[None, :])).to(q_wide.dtype)
        p = p.to(o_wide.dtype)
        dv_wide = tl.dot(p, o_wide, dv_wide, input_precision="ieee")
        dk_wide = tl.dot(d_s, q_wide, dk_wide, input_precision="ieee")
        if REST > 0:
            dv_rest = tl.dot(p, o_rest, dv_rest, input_precision="ieee")
            dk_rest = tl.dot(d_s, q_rest, dk_rest, input_precision="ieee")
    return dk_wide, dk_rest, dv_wide, dv_rest


@triton.jit
def flash_backward_keys(
    q, k, v, d_out, d_k, d_v, lse, delta,
    q_b, q_h, q_n, k_b, k_h, k_m, v_b, v_h, v_m, o_b, o_h, o_n, g_b, g_h, g_m, f_b, f_h, f_m,
    n, m_keys, scale, root,
    D: tl.constexpr, WIDE: tl.constexpr, REST: tl.constexpr, UNIT: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    """dK and dV of one block of keys: grid (M / BLOCK_K, heads, B). g and f are the strides of dK and dV."""
    q, q_n = head_of(q, q_b, q_h, UNIT), q_n * UNIT
    k, k_m = head_of(k, k_b, k_h, UNIT), k_m * UNIT
    v, v_m = head_of(v, v_b, v_h, UNIT), v_m * UNIT
    d_out, o_n = head_of(d_out, o_b, o_h, UNIT), o_n * UNIT
    d_k, g_m = head_of(d_k, g_b, g_h, UNIT), g_m * UNIT
    d_v, f_m = head_of(d_v, f_b, f_h, UNIT), f_m * UNIT
    lse = head_of(lse, tl.num_programs(1) * n, n, 1)
    delta = head_of(delta, tl.num_programs(1) * n, n, 1)
    first = tl.program_id(0) * BLOCK_K
    keys = first + tl.arange(0, BLOCK_K)

    k_wide, k_rest = load_columns(k, keys, k_m, m_keys, 0, WIDE, D, True), 0.0
    v_wide, v_rest = load_columns(v, keys, v_m, m_keys, 0, WIDE, D, True), 0.0
    dk_wide, dk_rest = tl.zeros([BLOCK_K, WIDE], tl.float32), 0.0
    dv_wide, dv_rest = tl.zeros([BLOCK_K, WIDE], tl.float32), 0.0
    if REST > 0:
        k_rest = load_columns(k, keys, k_m, m_keys, WIDE, REST, D, True)
        v_rest = load_columns(v, keys, v_m, m_keys, WIDE, REST, D, True)
        dk_rest = tl.zeros([BLOCK_K, REST], tl.float32)
        dv_rest = tl.zeros([BLOCK_K, REST], tl.float32)

    begin = 0
    if CAUSAL:  # no earlier query sees these keys
        begin = first // BLOCK_Q * BLOCK_Q
    dk_wide, dk_rest, dv_wide, dv_rest = walk_queries(
        dk_wide, dk_rest, dv_wide, dv_rest, k_wide, k_rest, v_wide, v_rest, q, d_out, lse, delta,
        q_n, o_n, keys, begin, n, scale, D, WIDE, REST, BLOCK_Q, CAUSAL,
    )  # fmt: skip
    store_columns(dk_wide * root, d_k, keys, g_m, m_keys, 0, WIDE, D)
    store_columns(dv_wide, d_v, keys, f_m, m_keys, 0, WIDE, D)
    if REST > 0:
        store_columns(dk_rest * root, d_k, keys, g_m, m_keys, WIDE, REST, D)
        store_columns(dv_rest, d_v, keys, f_m, m_keys, WIDE, REST, D)
