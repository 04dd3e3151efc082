"""FlashAttention as a PyTorch operator.

The kernels and their papers are in `flash_forward.py`, `flash_forward_tma.py` and `flash_backward.py`. This
module chooses between the first two, and registers the operator `ldm_core::flash_attention` and its gradient,
with shape functions, so that torch.compile, tracing and export support them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ldm_core.kernels.flash_backward import flash_backward_keys, flash_backward_queries
from ldm_core.kernels.flash_forward import flash_forward
from ldm_core.kernels.flash_forward_tma import flash_forward_tma
from ldm_core.kernels.launch import launch
from ldm_core.kernels.requirements import on_device
from ldm_core.kernels.tiles import Tile, backward_tiles, capability, forward_tile, split, tma_tile, tma_width

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def flash_attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """q (B, heads, N, D), k and v (B, heads, M, D), any strides -> (B, heads, N, D), a view of (B, N, ...).

    All three must have the same dtype, float16, bfloat16 or float32; D is at most 512. Sums and softmax are
    computed in float32. Raises ValueError for tensors of other shapes or dtypes, or that are not on a GPU.
    """
    _check(q, k, v, causal)
    out, _ = torch.ops.ldm_core.flash_attention(q, k, v, causal)
    return out


def _check(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> None:
    if q.ndim != 4 or k.shape != v.shape or k.shape[:2] + k.shape[3:] != q.shape[:2] + q.shape[3:]:
        shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
        raise ValueError(f"attention: expected q (B, heads, N, D), k and v (B, heads, M, D), got {shapes}")
    if q.dtype not in DTYPES or not q.dtype == k.dtype == v.dtype:
        kinds = ", ".join(str(x.dtype) for x in (q, k, v))
        raise ValueError(f"attention backend 'triton': float16, bfloat16 or float32 for all, got {kinds}")
    if causal and q.shape[2] != k.shape[2]:
        raise ValueError(f"causal attention: as many keys as queries, got {k.shape[2]} and {q.shape[2]}")
    if k.shape[2] == 0:
        raise ValueError("attention: expected at least one key, got none")
    on_device("attention backend 'triton'", q, k, v)


def _rows(x: Tensor) -> Tensor:
    """x if the kernels can read it (stride 1 along D, row offsets within 32 bits), otherwise a copy."""
    return x if x.stride(-1) == 1 and x.shape[2] * x.stride(2) < 2**31 else x.contiguous()


def _heads_last(x: Tensor) -> Tensor:
    """An empty tensor of x's shape (B, heads, N, D) whose memory order is (B, N, heads, D)."""
    b, heads, n, d = x.shape
    return x.new_empty(b, n, heads, d).transpose(1, 2)


def _grid(x: Tensor, block: int) -> tuple[int, int, int]:
    return triton.cdiv(x.shape[2], block), x.shape[1], x.shape[0]


def _strides(*tensors: Tensor) -> tuple[int, list[int]]:
    """A unit of 1, 2, 4 or 8 elements that divides all batch, head and row strides; the strides in units.

    Raises ValueError if the kernels' 32-bit offsets cannot reach all heads of an image.
    """
    strides = [stride for x in tensors for stride in x.stride()[:3]]
    unit = math.gcd(8, *strides)
    if any((x.shape[1] - 1) * abs(x.stride(1)) // unit >= 2**31 for x in tensors):
        raise ValueError(f"triton attention: the heads of one image take {unit} * 2^31 values or more")
    return unit, [stride // unit for stride in strides]


def _describable(x: Tensor) -> bool:
    """Whether TMA can read x: its address and strides are multiples of 16 bytes, and D's stride is 1."""
    strides = [stride * x.element_size() for stride in x.stride()[:3]]
    return x.stride(3) == 1 and all(s > 0 and s % 16 == 0 for s in strides) and x.data_ptr() % 16 == 0


def _options(tile: Tile, d: int, causal: bool, unit: int) -> dict[str, int]:
    """The compile-time arguments of all kernels."""
    wide, rest = split(d)
    return {
        "D": d, "WIDE": wide, "REST": rest, "CAUSAL": causal, "UNIT": unit,
        "BLOCK_Q": tile.queries, "BLOCK_K": tile.keys, **tile.options(),
    }  # fmt: skip


@torch.library.custom_op("ldm_core::flash_attention", mutates_args=())
def _forward(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """The result and, for the gradient, log2 of each query's sum of 2^score, (B, heads, N) float32."""
    q, k, v = _rows(q), _rows(k), _rows(v)
    n, d = q.shape[2:]
    out, lse = _forward_shapes(q, k, v, causal)
    if out.numel() == 0:
        return out, lse
    chip, numbers = capability(q.device), (n, k.shape[2], math.log2(math.e) * d**-0.5)
    tile = tma_tile(d, q.dtype, chip)
    if tile is not None and not causal and all(_describable(x) for x in (q, k, v, out)):
        width = tma_width(d)
        rows = (q, tile.queries), (k, tile.keys), (v, tile.keys), (out, tile.queries)
        tensors = [TensorDescriptor.from_tensor(x, [1, 1, block, width]) for x, block in rows]
        launch(
            flash_forward_tma, _grid(q, tile.queries), *tensors, lse, *numbers, on=q,
            BLOCK_Q=tile.queries, BLOCK_K=tile.keys, WIDTH=width, **tile.options(),
        )  # fmt: skip
        return out, lse
    tile = forward_tile(d, q.dtype, chip, queries=n, causal=causal)
    unit, strides = _strides(q, k, v, out)
    launch(
        flash_forward, _grid(q, tile.queries), q, k, v, out, lse, *strides, *numbers,
        on=q, **_options(tile, d, causal, unit),
    )  # fmt: skip
    return out, lse


@_forward.register_fake
def _forward_shapes(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    return _heads_last(q), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("ldm_core::flash_attention_backward", mutates_args=())
def _backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, d_out = _rows(q), _rows(k), _rows(v), _rows(d_out)
    n, d = q.shape[2:]
    d_q, d_k, d_v = _backward_shapes(d_out, q, k, v, out, lse, causal)
    if q.numel() == 0:
        return d_q, d_k.zero_(), d_v.zero_()
    delta = (d_out.float() * out.float()).sum(-1)
    numbers = n, k.shape[2], math.log2(math.e) * d**-0.5, d**-0.5
    for_queries, for_keys = backward_tiles(d, q.dtype)
    unit, strides = _strides(q, k, v, d_out, d_q)
    launch(
        flash_backward_queries, _grid(q, for_queries.queries), q, k, v, d_out, d_q, lse, delta,
        *strides, *numbers, on=q, **_options(for_queries, d, causal, unit),
    )  # fmt: skip
    unit, strides = _strides(q, k, v, d_out, d_k, d_v)
    launch(
        flash_backward_keys, _grid(k, for_keys.keys), q, k, v, d_out, d_k, d_v, lse, delta,
        *strides, *numbers, on=q, **_options(for_keys, d, causal, unit),
    )  # fmt: skip
    return d_q, d_k, d_v


@_backward.register_fake
def _backward_shapes(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _heads_last(q), _heads_last(k), _heads_last(v)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    q, k, v, ctx.causal = inputs
    ctx.save_for_backward(q, k, v, *output)


def _gradients(ctx: Any, d_out: Tensor, d_lse: Tensor) -> tuple[Tensor | None, ...]:
    return *torch.ops.ldm_core.flash_attention_backward(d_out, *ctx.saved_tensors, ctx.causal), None


_forward.register_autograd(_gradients, setup_context=_remember)
