"""The blocks of StyleGAN2, of which the decoders of GFPGAN and GPEN consist, in plain PyTorch.

Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN" (arXiv:1912.04958). A style s
scales the input channels of a convolution, and demodulation gives its outputs unit variance again:

    w'_oik = s_i w_oik                                           modulation (equation 1)
    w''_oik = w'_oik / sqrt(sum_{i,k} w'_oik^2 + eps)            demodulation (equation 3)

Since s belongs to an image, so does w''. Instead of one convolution per image, s scales the input and the
root scales the output of one convolution for all images, which is the same function.

Learning rates are equalised (Karras et al. 2018, arXiv:1710.10196, section 4.1): files store weights of unit
variance, and every call multiplies them by 1 / sqrt(fan in). With `scaled=False`, weights are stored as they
are used, as in GFPGAN's "clean" files.

Resampling blurs with the binomial filter [1, 3, 3, 1], as an outer product with sum 1; after zeros were
inserted between pixels, with sum 4.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_core.nn.convolution import auto_convolution

EPS = 1e-8
SLOPE = 0.2
SQRT2 = math.sqrt(2)
BINOMIAL = (1.0, 3.0, 3.0, 1.0)

Upsampling = Literal["bilinear", "transposed"]


def activate(x: Tensor, gain: float = SQRT2) -> Tensor:
    """Leaky ReLU of slope 0.2, times a gain, which keeps the variance of normal numbers if it is sqrt(2)."""
    return F.leaky_relu(x, SLOPE) * gain if gain != 1 else F.leaky_relu(x, SLOPE)


def blur_kernel(gain: float = 1.0) -> Tensor:
    """The binomial filter (4, 4) with the sum `gain`."""
    scale = gain / sum(BINOMIAL) ** 2
    return torch.tensor([[scale * a * b for b in BINOMIAL] for a in BINOMIAL])


def _each(x: Tensor, kernel: Tensor) -> Tensor:
    """The kernel (4, 4) once for every channel of x: (C, 1, 4, 4)."""
    return kernel.to(x).expand(x.shape[1], 1, *kernel.shape)


def blur(x: Tensor, kernel: Tensor, padding: int) -> Tensor:
    """Convolve every channel with the kernel: (B, C, h, w) -> (B, C, h + 2 * padding - 3, ...)."""
    # PyTorch correlates, so the kernel is flipped; this package's own is symmetric.
    return F.conv2d(x, _each(x, kernel.flip(0, 1)), padding=padding, groups=x.shape[1])


def blurred_double(x: Tensor, kernel: Tensor) -> Tensor:
    """A zero after each pixel, then the kernel, of sum 4: (B, C, h, w) -> (B, C, 2h, 2w)."""
    return F.conv_transpose2d(x, _each(x, kernel), stride=2, padding=1, groups=x.shape[1])


def bilinear_double(x: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, C, 2h, 2w); corners are not aligned."""
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


def _wide(x: Tensor) -> torch.dtype:
    """The dtype for sums of squares, which 16-bit types cannot hold."""
    return torch.promote_types(x.dtype, torch.float32)


class ScaledLinear(nn.Module):
    """x W^T + b: (..., in) -> (..., out), with W times lr / sqrt(in) and b times lr if `scaled`."""

    def __init__(
        self, in_features: int, out_features: int, *, scaled: bool = True, lr: float = 1.0, bias: float = 0.0
    ) -> None:
        super().__init__()
        fan_in = math.sqrt(in_features)
        self.gain, self.bias_gain = (lr / fan_in, lr) if scaled else (1.0, 1.0)
        self.weight = nn.Parameter(
            torch.empty(out_features, in_features).normal_(std=1 / (fan_in * self.gain))
        )
        self.bias = nn.Parameter(torch.empty(out_features).fill_(bias))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, _times(self.weight, self.gain), _times(self.bias, self.bias_gain))


class ScaledConv(nn.Module):
    """A square convolution whose weight is multiplied by 1 / sqrt(fan in), with padding of half its size."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, *, scaled: bool = True, bias: bool = True
    ) -> None:
        super().__init__()
        fan_in = math.sqrt(in_channels * kernel**2)
        self.gain = 1 / fan_in if scaled else 1.0
        values = torch.empty(out_channels, in_channels, kernel, kernel)
        self.weight = nn.Parameter(values.normal_(std=1 / (fan_in * self.gain)))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return convolve(x, _times(self.weight, self.gain), self.bias)

    def blurred_half(self, x: Tensor, kernel: Tensor) -> Tensor:
        """Blur, then convolve with stride 2: (B, C, h, w) -> (B, O, h/2, w/2)."""
        x = blur(x, kernel, (self.weight.shape[2] + 1) // 2)
        return F.conv2d(x, _times(self.weight, self.gain), self.bias, stride=2)


def _times(weight: Tensor, gain: float) -> Tensor:
    return weight if gain == 1 else weight * gain


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A convolution of stride 1 with 3x3 or 1x1 weights (O, C, k, k), and the padding that keeps h and w."""
    return auto_convolution(x, weight, bias) if weight.shape[2] == 3 else F.conv2d(x, weight, bias)


class Mapping(nn.Module):
    """The mapping network f: (B, style_dim) -> (B, style_dim), layers of `ScaledLinear` after a norm.

    Scaled layers learn at a hundredth of the rate of the others, and have the gain of sqrt(2).
    """

    def __init__(self, style_dim: int, layers: int, *, scaled: bool = True) -> None:
        super().__init__()
        self.gain = SQRT2 if scaled else 1.0
        self.layers = nn.ModuleList(
            ScaledLinear(style_dim, style_dim, scaled=scaled, lr=0.01) for _ in range(layers)
        )

    def forward(self, z: Tensor) -> Tensor:
        wide = z.to(_wide(z))
        z = (wide * torch.rsqrt(wide.square().mean(dim=1, keepdim=True) + EPS)).to(z.dtype)
        for layer in self.layers:
            z = activate(layer(z), self.gain)
        return z


class ModulatedConv(nn.Module):
    """A convolution whose input channels a style scales: (B, I, h, w), (B, style_dim) -> (B, O, h', w').

    up: doubles h and w. "bilinear": before the convolution; "transposed": by a transposed convolution of
        stride 2, which the blur follows.
    stored_kernel: the filter of that blur is a buffer, for files that contain it.
    """

    kernel: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: int,
        style_dim: int,
        *,
        demodulate: bool = True,
        scaled: bool = True,
        up: Upsampling | None = None,
        stored_kernel: bool = False,
    ) -> None:
        super().__init__()
        fan_in = math.sqrt(in_channels * size**2)
        self.demodulate = demodulate
        self.up = up
        self.gain = 1 / fan_in if scaled else 1.0
        values = torch.empty(1, out_channels, in_channels, size, size)
        self.weight = nn.Parameter(values.normal_(std=1 / (fan_in * self.gain)))
        self.modulation = ScaledLinear(style_dim, in_channels, scaled=scaled, bias=1.0)
        self.stored_kernel = stored_kernel
        if stored_kernel:
            self.register_buffer("kernel", blur_kernel(4.0))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        s = self.modulation(style)  # (B, I)
        weight = _times(self.weight[0], self.gain)  # (O, I, k, k)
        x = x * s[:, :, None, None]
        if self.up == "transposed":
            y = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
        else:
            y = convolve(bilinear_double(x) if self.up == "bilinear" else x, weight)
        if self.demodulate:
            y = y * self._normalisers(s, weight).to(y.dtype)[:, :, None, None]
        if self.up == "transposed":
            y = blur(y, self.kernel if self.stored_kernel else blur_kernel(4.0), padding=1)
        return y

    @staticmethod
    def _normalisers(s: Tensor, weight: Tensor) -> Tensor:
        """1 / sqrt(sum over i and k of (s_i w_oik)^2 + eps): (B, O), in float32 at least."""
        wide = _wide(s)
        squares = weight.to(wide).square().sum(dim=(2, 3))  # (O, I)
        return torch.rsqrt(s.to(wide).square() @ squares.T + EPS)


class ToRGB(nn.Module):
    """Features (B, C, h, w) to a picture (B, 3, h, w), plus the doubled picture of the level before it."""

    kernel: Tensor

    def __init__(
        self,
        channels: int,
        style_dim: int,
        *,
        up: Upsampling | None,
        scaled: bool = True,
        stored_kernel: bool = False,
    ) -> None:
        super().__init__()
        self.conv = ModulatedConv(channels, 3, 1, style_dim, demodulate=False, scaled=scaled)
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))
        self.up = up
        self.stored_kernel = stored_kernel and up is not None
        if self.stored_kernel:
            self.register_buffer("kernel", blur_kernel(4.0))

    def forward(self, x: Tensor, style: Tensor, skip: Tensor | None = None) -> Tensor:
        rgb = self.conv(x, style) + self.bias
        if skip is None:
            return rgb
        if self.up == "bilinear":
            return rgb + bilinear_double(skip)
        return rgb + blurred_double(skip, self.kernel if self.stored_kernel else blur_kernel(4.0))
