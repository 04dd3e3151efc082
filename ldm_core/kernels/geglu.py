"""value * GELU(gate), the activation of GEGLU, in one pass over the projection that contains both.

Shazeer 2020, "GLU variants improve transformer" (arXiv:2002.05202, equation 6), with the exact GELU of
Hendrycks and Gimpel 2016 (arXiv:1606.08415): gate * Phi(gate), Phi the normal distribution function.
PyTorch writes GELU(gate) to memory and reads it again; the kernel keeps it in registers.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ldm_core.kernels.launch import launch
from ldm_core.kernels.requirements import on_device

BLOCK = 1024
WARPS = 4


@triton.jit
def geglu_rows(x, out, width, BLOCK: tl.constexpr):
    """Compute a block of one row: x (rows, 2 * width) -> out (rows, width), grid (rows, width / BLOCK)."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    value = tl.load(x + row * 2 * width + column, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(x + row * 2 * width + width + column, mask=inside, other=0.0).to(tl.float32)
    phi = 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476))  # 1 / sqrt(2)
    tl.store(out + row * width + column, (value * gate * phi).to(out.dtype.element_ty), mask=inside)


def geglu(x: Tensor) -> Tensor:
    """x (..., 2 * width), values before gates -> (..., width). Raises ValueError if x is not on a GPU."""
    if x.shape[-1] % 2:
        raise ValueError(f"fused GEGLU: expected an even number of channels, got {x.shape[-1]}")
    on_device("fused GEGLU", x)
    return torch.ops.ldm_core.geglu(x)


@torch.library.custom_op("ldm_core::geglu", mutates_args=())
def _forward(x: Tensor) -> Tensor:
    x, out = x.contiguous(), _shape(x)
    if out.numel():
        width = out.shape[-1]
        grid = out.numel() // width, triton.cdiv(width, BLOCK)
        launch(geglu_rows, grid, x, out, width, on=x, BLOCK=BLOCK, num_warps=WARPS)
    return out


@_forward.register_fake
def _shape(x: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], x.shape[-1] // 2)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, d_out: Tensor) -> Tensor:
    """The chain rule in plain PyTorch in float32: GELU'(g) = Phi(g) + g phi(g)."""
    (x,) = ctx.saved_tensors
    value, gate = x.float().chunk(2, dim=-1)
    phi = 0.5 * (1 + torch.erf(gate / math.sqrt(2)))
    density = torch.exp(-0.5 * gate**2) / math.sqrt(2 * math.pi)
    d = d_out.float()
    return torch.cat([d * gate * phi, d * value * (phi + gate * density)], dim=-1).to(x.dtype)


_forward.register_autograd(_gradients, setup_context=_remember)
