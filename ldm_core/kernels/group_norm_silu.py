"""SiLU(group norm(x)), which precedes every 3x3 convolution, in one pass over x after the statistics.

Group norm (Wu and He 2018, arXiv:1803.08494, equations 1 and 3) subtracts the mean of a group of channels and
divides by its standard deviation; SiLU (Hendrycks and Gimpel 2016, arXiv:1606.08415) is z sigmoid(z). PyTorch
reads x for the statistics, for the normalisation and for SiLU; the kernel combines the last two.

The statistics are computed in float32 for each tile and merged by the formula of Chan, Golub and LeVeque
(1979, "Updating formulae and a pairwise algorithm for computing sample variances", equation 2.1), because
subtracting the square of the sum from the sum of squares would cancel. x may be contiguous or channels-last;
the result has the layout of x.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from ldm_core.kernels.requirements import on_device

TILE = 4096  # elements of one tile
WARPS = 4


@triton.jit
def load_tile(
    x,
    stride_b,
    stride_c,
    stride_p,
    pixels,
    G_CHANNELS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """This program's tile of x, (BLOCK_C, BLOCK_P) float32, its offsets and mask: grid (tile, group, B)."""
    channel = tl.arange(0, BLOCK_C)
    pixel = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = (channel[:, None] < G_CHANNELS) & (pixel[None, :] < pixels)
    begin = tl.program_id(2).to(tl.int64) * stride_b + tl.program_id(1) * G_CHANNELS * stride_c
    offsets = begin + channel[:, None] * stride_c + pixel[None, :] * stride_p
    return tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32), offsets, inside


@triton.jit
def tile_moments(
    x, means, squares, stride_b, stride_c, stride_p, pixels,
    G_CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Write a tile's mean and its sum of squared deviations to (B, groups, tiles)."""
    values, _, inside = load_tile(x, stride_b, stride_c, stride_p, pixels, G_CHANNELS, BLOCK_C, BLOCK_P)
    count = G_CHANNELS * tl.minimum(BLOCK_P, pixels - tl.program_id(0) * BLOCK_P)
    mean = tl.sum(values) / count
    deviations = tl.where(inside, values - mean, 0.0)
    place = (tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(0) + tl.program_id(0)
    tl.store(means + place, mean)
    tl.store(squares + place, tl.sum(deviations * deviations))


@triton.jit
def normalise_tile(
    x, out, weight, bias, means, squares, mean_out, rstd_out, stride_b, stride_c, stride_p, pixels, eps,
    G_CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Merge the moments of all tiles of the group, then normalise and activate one tile."""
    tiles = tl.num_programs(0)
    group = tl.program_id(2) * tl.num_programs(1) + tl.program_id(1)
    tile = tl.arange(0, BLOCK_T)
    counts = tl.where(tile < tiles, G_CHANNELS * tl.minimum(BLOCK_P, pixels - tile * BLOCK_P), 0).to(
        tl.float32
    )
    tile_mean = tl.load(means + group * tiles + tile, mask=tile < tiles, other=0.0)
    total = tl.sum(counts)
    mean = tl.sum(tile_mean * counts) / total
    apart = tile_mean - mean
    within = tl.load(squares + group * tiles + tile, mask=tile < tiles, other=0.0)
    variance = tl.sum(within + counts * apart * apart) / total
    rstd = 1.0 / tl.sqrt(variance + eps)
    if tl.program_id(0) == 0:
        tl.store(mean_out + group, mean)
        tl.store(rstd_out + group, rstd)

    values, offsets, inside = load_tile(x, stride_b, stride_c, stride_p, pixels, G_CHANNELS, BLOCK_C, BLOCK_P)
    channel = tl.arange(0, BLOCK_C)
    parameters = tl.program_id(1) * G_CHANNELS + channel
    w = tl.load(weight + parameters, mask=channel < G_CHANNELS, other=0.0).to(tl.float32)
    b = tl.load(bias + parameters, mask=channel < G_CHANNELS, other=0.0).to(tl.float32)
    z = (values - mean) * rstd * w[:, None] + b[:, None]
    tl.store(out + offsets, (z / (1.0 + tl.exp(-z))).to(out.dtype.element_ty), mask=inside)


def group_norm_silu(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """`F.silu(norm(x))` for x (B, C, h, w). Raises ValueError for another shape or a norm without weights."""
    if norm.weight is None or x.ndim != 4:
        raise ValueError(
            f"fused group norm: expected x of (B, C, h, w) and a norm with weights, got {tuple(x.shape)}"
        )
    on_device("fused group norm", x, norm.weight)
    out, _, _ = torch.ops.ldm_core.group_norm_silu(x, norm.weight, norm.bias, norm.num_groups, norm.eps)
    return out


@torch.library.custom_op("ldm_core::group_norm_silu", mutates_args=())
def _forward(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The result, and the mean and 1 / standard deviation of each group, (B, groups) float32."""
    out, mean, rstd = _shapes(x, weight, bias, groups, eps)
    if out.numel() == 0:
        return out, mean, rstd
    x = _laid_out(x)
    b, c, h, w = x.shape
    block_c = triton.next_power_of_2(c // groups)
    block_p = max(16, TILE // block_c)
    tiles = triton.cdiv(h * w, block_p)
    means, squares = x.new_empty(2, b, groups, tiles, dtype=torch.float32)
    layout = *x.stride()[:2], x.stride(3), h * w
    options = {"G_CHANNELS": c // groups, "BLOCK_C": block_c, "BLOCK_P": block_p, "num_warps": WARPS}
    grid = tiles, groups, b
    tile_moments[grid](x, means, squares, *layout, **options)
    normalise_tile[grid](
        x, out, weight, bias, means, squares, mean, rstd, *layout, eps,
        BLOCK_T=triton.next_power_of_2(tiles), **options,
    )  # fmt: skip
    return out, mean, rstd


@_forward.register_fake
def _shapes(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    statistics = x.new_empty(2, x.shape[0], groups, dtype=torch.float32)
    return torch.empty_like(_laid_out(x)), torch.empty_like(statistics[0]), torch.empty_like(statistics[1])


def _laid_out(x: Tensor) -> Tensor:
    """x if it is contiguous or channels-last, where all pixels have one stride, otherwise a copy."""
    last = x.is_contiguous(memory_format=torch.channels_last)
    return x if last else x.contiguous()


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, weight, bias, _, _ = inputs
    ctx.save_for_backward(x, weight, bias, *output[1:])


def _gradients(ctx: Any, d_out: Tensor, d_mean: Tensor, d_rstd: Tensor) -> tuple[Tensor | None, ...]:
    """The chain rule in plain PyTorch in float32; memory matters less in training than in sampling."""
    x, weight, bias, mean, rstd = ctx.saved_tensors
    grouped = (x.shape[0], mean.shape[1], -1)
    wide = x.float().reshape(grouped)
    normal = ((wide - mean[..., None]) * rstd[..., None]).reshape(x.shape)
    w, b = weight.float()[:, None, None], bias.float()[:, None, None]
    z = normal * w + b
    gate = z.sigmoid()
    d_z = d_out.float() * gate * (1 + z * (1 - gate))
    d_weight, d_bias = (d_z * normal).sum((0, 2, 3)), d_z.sum((0, 2, 3))
    d_normal, normal = (d_z * w).reshape(grouped), normal.reshape(grouped)
    centred = d_normal - d_normal.mean(-1, keepdim=True)
    d_x = (centred - normal * (d_normal * normal).mean(-1, keepdim=True)) * rstd[..., None]
    return d_x.reshape(x.shape).to(x.dtype), d_weight.to(weight.dtype), d_bias.to(bias.dtype), None, None


_forward.register_autograd(_gradients, setup_context=_remember)
