"""Building blocks of the U-Net and the autoencoder: residual blocks, resampling, timestep embedding.

CompVis's counterparts are `ResBlock`, `Upsample`, `Downsample` and `timestep_embedding` of
`ldm.modules.diffusionmodules` (in `openaimodel` for the U-Net and in `model` for the autoencoder). Both
compute the same blocks; they differ in the epsilon of the norms, in the use of a timestep embedding, and in
the padding of strided convolutions.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_core.nn.convolution import Conv3x3, channels_last
from ldm_core.nn.large_group_norm import is_large, large_group_norm
from ldm_core.nn.transforms import transforming

GROUPS = 32


# Modules hold these functions as attributes, so that `set_kernels` can replace them with fused kernels.
Norm = Callable[[nn.GroupNorm, Tensor], Tensor]
NormSilu = Callable[[nn.GroupNorm, Tensor], Tensor]
Geglu = Callable[[Tensor], Tensor]
GatedProjection = Callable[[nn.Module, Geglu, Tensor], Tensor]


class GroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` that computes with the function `normalise`: (B, C, h, w) -> the same shape."""

    def __init__(self, groups: int, channels: int, eps: float) -> None:
        super().__init__(groups, channels, eps=eps)
        self.normalise: Norm = normalise

    def forward(self, input: Tensor) -> Tensor:
        return self.normalise(self, input)


def normalise(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """PyTorch's group norm, also inside `torch.func.vmap` and `jvp`, which need its input contiguous."""
    x = x.contiguous() if transforming() else x
    if is_large(norm, x):
        return large_group_norm(norm, x)
    return F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)


def group_norm(channels: int, eps: float) -> GroupNorm:
    """Group norm with 32 groups. PyTorch's kernels compute the statistics of 16-bit inputs in float32."""
    return GroupNorm(GROUPS, channels, eps)


def norm_silu(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    """SiLU(norm(x)): (B, C, h, w) -> the same shape."""
    # Allocating a feature map is the main cost, so SiLU works in place unless a forward hook still needs the
    # norm's output.
    return F.silu(norm(x), inplace=not norm._forward_hooks)


def geglu(x: Tensor) -> Tensor:
    """value * GELU(gate) (Shazeer 2020, arXiv:2002.05202): (..., 2C), values before gates -> (..., C)."""
    value, gate = x.chunk(2, dim=-1)
    return F.gelu(gate).mul_(value)


def gated_projection(proj: nn.Module, geglu: Geglu, x: Tensor) -> Tensor:
    """GEGLU of a projection of x: (..., C) -> (..., half of the projection's outputs)."""
    return geglu(proj(x))


def fastest_layout(x: Tensor) -> Tensor:
    """Convert a feature map on a CPU to channels-last, the order that attention, Winograd and oneDNN read.

    Convolutions preserve the layout, so a network converts its input only.
    """
    return channels_last(x) if x.device.type == "cpu" else x


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding of t, cosines first: (B,) -> (B, dim), float32 (Vaswani et al. 2017, section 3.5).

    Always in float32: the product of a t up to 1,000 and a frequency needs more than the 8 or 11 bits of a
    half-precision type.
    """
    half = dim // 2
    exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / half
    angles = t.float()[:, None] * exponent.exp()[None]  # (B, half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class ResBlock(nn.Module):
    """Two normalised 3x3 convolutions with a shortcut: (B, in_channels, h, w) -> (B, out_channels, h, w).

    With `time_channels`, forward also takes the activated timestep embedding (B, time_channels) and adds its
    projection between the convolutions. With `scale_shift`, it scales and shifts the second norm instead:
    norm(h) * (1 + scale) + shift (Dhariwal and Nichol 2021, arXiv:2105.05233, section 3.1).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        time_channels: int | None = None,
        scale_shift: bool = False,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.norm_silu: NormSilu = norm_silu
        self.norm1 = group_norm(in_channels, eps)
        self.conv1 = Conv3x3(in_channels, out_channels)
        projected = 2 * out_channels if scale_shift else out_channels
        self.time_proj = None if time_channels is None else nn.Linear(time_channels, projected)
        self.norm2 = group_norm(out_channels, eps)
        self.conv2 = Conv3x3(out_channels, out_channels)
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        return self._convolve(self.norm_silu(self.norm1, x), x, emb)

    def _convolve(self, h: Tensor, x: Tensor, emb: Tensor | None) -> Tensor:
        """The block's output for x, given the input h of its first convolution."""
        h = self.conv1(h)
        projected = None if self.time_proj is None else self.time_proj(emb)[:, :, None, None]
        if projected is not None and self.scale_shift:
            scale, shift = projected.chunk(2, dim=1)  # (B, 2 * C, 1, 1) -> two of (B, C, 1, 1)
            h = F.silu(self.norm2(h) * (1 + scale) + shift)
        else:
            h = self.norm_silu(self.norm2, h if projected is None else h + projected)
        return self.skip(x) + self.conv2(h)


class ResampleBlock(ResBlock):
    """A residual block that halves or doubles h and w: (B, C, h, w) -> (B, C, h/2, w/2) or (B, C, 2h, 2w).

    resample: a function of a feature map without weights, `halve` or `double`. It is applied to the input of
    the first convolution and to the shortcut.
    """

    def __init__(
        self,
        channels: int,
        resample: Callable[[Tensor], Tensor],
        *,
        time_channels: int,
        scale_shift: bool = False,
    ) -> None:
        super().__init__(channels, channels, time_channels=time_channels, scale_shift=scale_shift)
        self.resample = resample

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        return self._convolve(self.resample(self.norm_silu(self.norm1, x)), self.resample(x), emb)


def halve(x: Tensor) -> Tensor:
    """The mean of each 2x2 pixels: (B, C, h, w) -> (B, C, h/2, w/2)."""
    return F.avg_pool2d(x, 2)


def double(x: Tensor) -> Tensor:
    """Nearest-neighbour upsampling: (B, C, h, w) -> (B, C, 2h, 2w)."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2: (B, C, h, w) -> (B, C, h/2, w/2).

    The U-Net pads one pixel on every side; the autoencoder pads only the bottom and the right (`asymmetric`).
    """

    def __init__(self, channels: int, *, asymmetric: bool = False) -> None:
        super().__init__()
        self.asymmetric = asymmetric
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if asymmetric else 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.asymmetric else x)


class Upsample(nn.Module):
    """Nearest-neighbour upsampling by 2 and a 3x3 convolution: (B, C, h, w) -> (B, C, 2h, 2w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(double(x))
