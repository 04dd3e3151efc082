"""Group norm, with SiLU where a 3x3 convolution follows and without where attention does, in any layout of x.

Group norm (Wu and He 2018, arXiv:1803.08494, equations 1 and 3) subtracts the mean of a group of channels and
divides by its standard deviation; SiLU (Hendrycks and Gimpel 2016, arXiv:1606.08415) is z sigmoid(z):

    z = (x - mean) * rstd * weight + bias,  rstd = 1 / sqrt(variance + eps),  out = z sigmoid(z) or z

Three kernels compute it: the moments of each channel in each tile of pixels, the mean and `rstd` of each
group from them, and the formula for each element. x is read twice and written once, and the result has its
layout; PyTorch's kernels copy a channels-last x to contiguous, and the next convolution copies back.

Moments are computed in float32 for each tile and merged by the formula of Chan, Golub and LeVeque (1979,
"Updating formulae and a pairwise algorithm for computing sample variances", equation 2.1), because
subtracting the square of the sum from the sum of squares would cancel. Tiles need not align with the groups,
since moments are kept for each channel; so a tile covers whole lines of memory in either layout.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from ldm_core.kernels.launch import launch
from ldm_core.kernels.requirements import on_device

# The sides of a tile: 128 bytes in 16-bit types, a line of memory, whether channels or pixels are adjacent.
PIXELS, CHANNELS = 64, 64
MOMENTS = 1024  # that are merged at a time
WARPS = 4


@triton.jit
def load_tile(
    x, stride_b, stride_c, stride_p, channels, pixels, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """This program's tile, (BLOCK_P, BLOCK_C) float32, its offsets and mask: grid (pixels, channels, B)."""
    pixel = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (pixel[:, None] < pixels) & (channel[None, :] < channels)
    # 64-bit, because a map at the decoder's end can have more than 2^31 elements
    image, row, column = tl.program_id(2).to(tl.int64), pixel.to(tl.int64), channel.to(tl.int64)
    offsets = image * stride_b + row[:, None] * stride_p + column[None, :] * stride_c
    return tl.load(x + offsets, mask=inside, other=0.0).to(tl.float32), offsets, inside


@triton.jit
def tile_moments(
    x, means, squares, stride_b, stride_c, stride_p, channels, pixels,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Each channel's mean over a tile's pixels and sum of squared deviations: to (B, tiles, C) float32."""
    values, _, inside = load_tile(x, stride_b, stride_c, stride_p, channels, pixels, BLOCK_P, BLOCK_C)
    count = tl.minimum(BLOCK_P, pixels - tl.program_id(0) * BLOCK_P)
    mean = tl.sum(values, axis=0) / count
    deviations = tl.where(inside, values - mean[None, :], 0.0)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    place = tl.program_id(2).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    mean += tl.sum(deviations, axis=0) / count  # what the first sum lost in rounding
    tl.store(means + place * channels + channel, mean, mask=channel < channels)
    square = tl.sum(deviations * deviations, axis=0)
    tl.store(squares + place * channels + channel, square, mask=channel < channels)


@triton.jit
def merge_moments(
    means, squares, mean_out, rstd_out, width, channels, pixels, tiles, eps,
    BLOCK: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """A group's mean and 1 / standard deviation: grid (groups, B). `width`: channels of a group."""
    begin = tl.program_id(1).to(tl.int64) * tiles * channels + tl.program_id(0) * width
    near = tl.load(means + begin)  # sums of what is left after it round to smaller steps
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, tiles * width, BLOCK):
        index = start + tl.arange(0, BLOCK)
        tile = index // width
        count = tl.minimum(BLOCK_P, pixels - tile * BLOCK_P).to(tl.float32)
        place = begin + tile.to(tl.int64) * channels + index % width
        total += count * (tl.load(means + place, mask=tile < tiles, other=near) - near)
    elements = tl.cast(pixels, tl.float32) * width  # `pixels` is a constant where it is 1
    mean = near + tl.sum(total) / elements

    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, tiles * width, BLOCK):
        index = start + tl.arange(0, BLOCK)
        tile = index // width
        count = tl.minimum(BLOCK_P, pixels - tile * BLOCK_P).to(tl.float32)
        place = begin + tile.to(tl.int64) * channels + index % width
        apart = tl.load(means + place, mask=tile < tiles, other=mean) - mean
        total += tl.load(squares + place, mask=tile < tiles, other=0.0) + count * apart * apart
    group = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    tl.store(mean_out + group, mean)
    tl.store(rstd_out + group, 1.0 / tl.sqrt(tl.sum(total) / elements + eps))


@triton.jit
def normalise_tile(
    x, out, weight, bias, means, rstds, stride_b, stride_c, stride_p, channels, pixels, width, groups,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """The formula for one tile. Each channel takes the moments of its own group, channel // width."""
    values, offsets, inside = load_tile(x, stride_b, stride_c, stride_p, channels, pixels, BLOCK_P, BLOCK_C)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    group = tl.program_id(2) * groups + channel // width
    mean = tl.load(means + group, mask=channel < channels, other=0.0)
    rstd = tl.load(rstds + group, mask=channel < channels, other=0.0)
    w = tl.load(weight + channel, mask=channel < channels, other=0.0).to(tl.float32)
    b = tl.load(bias + channel, mask=channel < channels, other=0.0).to(tl.float32)
    z = (values - mean[None, :]) * (rstd * w)[None, :] + b[None, :]
    if SILU:
        z = z / (1.0 + tl.exp(-z))
    tl.store(out + offsets, z.to(out.dtype.element_ty), mask=inside)


def group_norm_silu(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """`F.silu(norm(x))` for x (B, C, h, w). Raises ValueError for another shape or a norm without weights."""
    return _normalised(norm, x, silu=True)


def group_norm(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """`norm(x)` for x (B, C, h, w). Raises ValueError for another shape or a norm without weights."""
    return _normalised(norm, x, silu=False)


def _normalised(norm: nn.GroupNorm, x: Tensor, *, silu: bool) -> Tensor:
    if norm.weight is None or x.ndim != 4:
        raise ValueError(
            f"fused group norm: expected x of (B, C, h, w) and a norm with weights, got {tuple(x.shape)}"
        )
    on_device("fused group norm", x, norm.weight)
    return torch.ops.ldm_core.group_norm(x, norm.weight, norm.bias, norm.num_groups, norm.eps, silu)[0]


@torch.library.custom_op("ldm_core::group_norm", mutates_args=())
def _forward(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The result, and the mean and 1 / standard deviation of each group, (B, groups) float32."""
    out, mean, rstd = _shapes(x, weight, bias, groups, eps, silu)
    if out.numel() == 0:
        return out, mean, rstd
    x = _laid_out(x)
    b, c, h, w = x.shape
    tiles = triton.cdiv(h * w, PIXELS)
    means, squares = x.new_empty(2, b, tiles, c, dtype=torch.float32)
    grid, layout = (tiles, triton.cdiv(c, CHANNELS), b), (*x.stride()[:2], x.stride(3), c, h * w)
    tile = {"BLOCK_P": PIXELS, "BLOCK_C": CHANNELS, "num_warps": WARPS}
    launch(tile_moments, grid, x, means, squares, *layout, on=x, **tile)
    launch(
        merge_moments, (groups, b), means, squares, mean, rstd, c // groups, c, h * w, tiles, eps,
        on=x, BLOCK=MOMENTS, BLOCK_P=PIXELS, num_warps=WARPS,
    )  # fmt: skip
    launch(
        normalise_tile, grid, x, out, weight, bias, mean, rstd, *layout, c // groups, groups,
        on=x, SILU=silu, **tile,
    )  # fmt: skip
    return out, mean, rstd


@_forward.register_fake
def _shapes(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    statistics = x.new_empty(2, x.shape[0], groups, dtype=torch.float32)
    return torch.empty_like(_laid_out(x)), torch.empty_like(statistics[0]), torch.empty_like(statistics[1])


def _laid_out(x: Tensor) -> Tensor:
    """x if it is contiguous or channels-last, where all pixels have one stride, otherwise a copy."""
    last = x.is_contiguous(memory_format=torch.channels_last)
    return x if last else x.contiguous()


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, weight, bias, _, _, ctx.silu = inputs
    ctx.save_for_backward(x, weight, bias, *output[1:])


def _gradients(ctx: Any, d_out: Tensor, d_mean: Tensor, d_rstd: Tensor) -> tuple[Tensor | None, ...]:
    """The chain rule in plain PyTorch in float32; memory matters less in training than in sampling."""
    x, weight, bias, mean, rstd = ctx.saved_tensors
    grouped = (x.shape[0], mean.shape[1], -1)
    wide = x.float().reshape(grouped)
    normal = ((wide - mean[..., None]) * rstd[..., None]).reshape(x.shape)
    w, d_z = weight.float()[:, None, None], d_out.float()
    if ctx.silu:
        z = normal * w + bias.float()[:, None, None]
        gate = z.sigmoid()
        d_z = d_z * gate * (1 + z * (1 - gate))
    d_weight, d_bias = (d_z * normal).sum((0, 2, 3)), d_z.sum((0, 2, 3))
    d_normal, normal = (d_z * w).reshape(grouped), normal.reshape(grouped)
    centred = d_normal - d_normal.mean(-1, keepdim=True)
    d_x = (centred - normal * (d_normal * normal).mean(-1, keepdim=True)) * rstd[..., None]
    d_x = d_x.reshape(x.shape).to(x.dtype)
    return d_x, d_weight.to(weight.dtype), d_bias.to(bias.dtype), None, None, None


_forward.register_autograd(_gradients, setup_context=_remember)
