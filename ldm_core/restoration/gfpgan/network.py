"""GFPGAN: a U-Net reads a degraded face and steers a StyleGAN2 decoder that has learned faces.

Wang et al. 2021, "Towards Real-World Blind Face Restoration with Generative Facial Prior" (arXiv:2101.04061).

    F_latent, F_spatial = U-Net(x)               (section 3.2)
    W = linear(F_latent)                         one style for each layer of the decoder (section 3.3)
    alpha, beta = convolutions(F_spatial)        at each size (section 3.4, equation 2)
    F[second half] <- alpha F[second half] + beta        channel-split SFT (equation 3)

The SFT acts on half of the channels, so that the decoder's own features and the input's stay side by side.
The decoder adds noise in every layer. It is drawn from a seed here, so that a result is a function of its
seed; the original scripts draw it anew in every call.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from ldm_core.nn.blocks import fastest_layout, halve
from ldm_core.nn.convolution import Conv3x3
from ldm_core.noise import generators, image_seeds, randn
from ldm_core.restoration.gfpgan.config import GFPGANConfig
from ldm_core.restoration.inputs import require_faces
from ldm_core.restoration.stylegan import (
    SQRT2,
    Mapping,
    ModulatedConv,
    ScaledConv,
    ScaledLinear,
    ToRGB,
    Upsampling,
    activate,
    bilinear_double,
    blur_kernel,
)
from ldm_core.support.printable import shown

Seed = int | Sequence[int] | None
Noise = Sequence[Tensor] | Literal["stored"] | None


def _conv(in_channels: int, out_channels: int, kernel: int, scaled: bool, bias: bool = True) -> nn.Module:
    if kernel == 3 and not scaled:
        return Conv3x3(in_channels, out_channels)
    return ScaledConv(in_channels, out_channels, kernel, scaled=scaled, bias=bias)


class UNetBlock(nn.Module):
    """A residual block that halves or doubles h and w: (B, C, h, w) -> (B, O, h', w').

    In the variants with weights of unit variance, the sum of the two branches is divided by sqrt(2).
    """

    def __init__(self, in_channels: int, out_channels: int, *, up: bool, config: GFPGANConfig) -> None:
        super().__init__()
        self.gain = SQRT2 if config.scaled else 1.0
        self.up = up
        self.blurs = config.variant == "original" and not up
        self.conv1 = _conv(in_channels, in_channels, 3, config.scaled)
        self.conv2 = _conv(in_channels, out_channels, 3, config.scaled)
        self.skip = _conv(in_channels, out_channels, 1, config.scaled, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = activate(self.conv1(x), self.gain)
        out = activate(self._resampled(self.conv2, out), self.gain)
        return (out + self._resampled(self.skip, x)) / self.gain

    def _resampled(self, conv: nn.Module, x: Tensor) -> Tensor:
        if self.blurs:
            assert isinstance(conv, ScaledConv)
            return conv.blurred_half(x, blur_kernel())
        # The mean of 2x2 pixels is bilinear interpolation to half the size.
        return conv(bilinear_double(x) if self.up else halve(x))


class StyleConv(nn.Module):
    """A modulated convolution, noise, bias, activation: (B, I, h, w) -> (B, O, h', w')."""

    def __init__(
        self, in_channels: int, out_channels: int, config: GFPGANConfig, up: Upsampling | None = None
    ) -> None:
        super().__init__()
        # The gain of sqrt(2) is applied before noise and bias where these were stored with it.
        self.before, self.after = (1.0, SQRT2) if config.scaled else (SQRT2, 1.0)
        self.conv = ModulatedConv(in_channels, out_channels, 3, config.style_dim, scaled=config.scaled, up=up)
        self.noise_weight = nn.Parameter(torch.zeros(1))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: Tensor, style: Tensor, noise: Tensor) -> Tensor:
        """noise: (B or 1, 1, h', w')."""
        x = self.conv(x, style)
        x = x * self.before if self.before != 1 else x
        return activate(x + self.noise_weight * noise + self.bias[:, None, None], self.after)


class StoredNoise(nn.Module):
    """The noise maps of a file, one for each style convolution: (1, 1, h, w), buffers named by numbers."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.sizes = [4, *(4 * 2**level for level in range(1, levels) for _ in range(2))]
        for i, size in enumerate(self.sizes):
            self.register_buffer(str(i), torch.empty(1, 1, size, size).normal_())


class Decoder(nn.Module):
    """StyleGAN2 whose features a U-Net scales and shifts."""

    def __init__(self, config: GFPGANConfig) -> None:
        super().__init__()
        self.mapping = Mapping(config.style_dim, config.mlp_layers, scaled=config.scaled)
        self.constant = nn.Parameter(torch.empty(1, config.widths[0], 4, 4).normal_())
        up: Upsampling = "transposed" if config.variant == "original" else "bilinear"
        self.first = StyleConv(config.widths[0], config.widths[0], config)
        self.first_rgb = ToRGB(config.widths[0], config.style_dim, up=None, scaled=config.scaled)
        self.convs, self.to_rgb = nn.ModuleList(), nn.ModuleList()
        for before, width in pairwise(config.widths):
            self.convs.append(StyleConv(before, width, config, up))
            self.convs.append(StyleConv(width, width, config))
            self.to_rgb.append(ToRGB(width, config.style_dim, up=up, scaled=config.scaled))
        self.noises = StoredNoise(len(config.widths))

    def forward(
        self, styles: Tensor, scales: list[Tensor], shifts: list[Tensor], noise: Sequence[Tensor]
    ) -> Tensor:
        """styles (B, 2 * levels, style_dim) -> pictures (B, 3, size, size)."""
        x = fastest_layout(self.constant.expand(len(styles), -1, -1, -1))
        x = self.first(x, styles[:, 0], noise[0])
        rgb = self.first_rgb(x, styles[:, 1])
        for level, to_rgb in enumerate(self.to_rgb):
            i = 2 * level + 1
            x = self.convs[i - 1](x, styles[:, i], noise[i])
            own, steered = x.chunk(2, dim=1)
            x = torch.cat([own, steered * scales[level] + shifts[level]], dim=1)
            x = self.convs[i](x, styles[:, i + 1], noise[i + 1])
            rgb = to_rgb(x, styles[:, i + 2], rgb)
        return rgb


class GFPGAN(nn.Module):
    """A degraded face (B, 3, size, size) in [-1, 1] to the restored one, of the same shape."""

    def __init__(self, config: GFPGANConfig) -> None:
        super().__init__()
        self.config = config
        self.gain = SQRT2 if config.scaled else 1.0
        halves = [width // 2 for width in config.widths]
        steps = list(pairwise(halves))  # from a level to the next finer one
        self.first = _conv(3, halves[-1], 1, config.scaled)
        self.down = nn.ModuleList(
            UNetBlock(fine, coarse, up=False, config=config) for coarse, fine in reversed(steps)
        )
        self.final_conv = _conv(halves[0], halves[0], 3, config.scaled)
        styles = 2 * len(halves) * config.style_dim
        self.to_styles = ScaledLinear(16 * halves[0], styles, scaled=config.scaled)
        self.up = nn.ModuleList(UNetBlock(coarse, fine, up=True, config=config) for coarse, fine in steps)
        # Pictures of every size, with which the original trained the U-Net.
        self.to_rgb = nn.ModuleList(_conv(width, 3, 1, config.scaled) for width in halves[1:])
        self.scale = nn.ModuleList(_Condition(width, config.scaled) for width in halves[1:])
        self.shift = nn.ModuleList(_Condition(width, config.scaled) for width in halves[1:])
        self.decoder = Decoder(config)

    def forward(self, x: Tensor, *, seed: Seed = 0, noise: Noise = None) -> Tensor:
        """The restored faces.

        seed: of the noise: an int (image k of a batch has seed + k), one int per image, or None for fresh
            noise in every call, as in the original scripts.
        noise: instead of drawn noise, "stored" for the maps of the file, or one map (B or 1, 1, h, w) for
            each style convolution.
        Raises ValueError for pictures of another size, for a wrong seed or for other noise.
        """
        require_faces("GFPGAN", x, self.config.size)
        maps = self._noise(x, seed, noise)
        feat = activate(self.first(fastest_layout(x)), self.gain)
        skips: list[Tensor] = []
        for block in self.down:
            feat = block(feat)
            skips.append(feat)
        feat = activate(self.final_conv(feat), self.gain)
        # (B, C, 4, 4) -> (B, 2 * levels, style_dim), from features in the order of channels, rows, columns
        styles = self.to_styles(feat.flatten(1)).unflatten(1, (-1, self.config.style_dim))
        scales: list[Tensor] = []
        shifts: list[Tensor] = []
        for block, scale, shift in zip(self.up, self.scale, self.shift):
            feat = block(feat + skips.pop())
            scales.append(scale(feat))
            shifts.append(shift(feat))
        return self.decoder(styles, scales, shifts, maps)

    def _noise(self, x: Tensor, seed: Seed, noise: Noise) -> Sequence[Tensor]:
        sizes = self.decoder.noises.sizes
        if noise is None:
            drawn = generators(image_seeds(seed, len(x)))
            return [randn((len(x), 1, size, size), drawn).to(x) for size in sizes]
        if isinstance(noise, str):
            if noise != "stored":
                raise ValueError(f"GFPGAN: noise must be 'stored' or maps, not {shown(noise)}")
            return list(self.decoder.noises.buffers())
        shapes = [tuple(one.shape) for one in noise]
        wanted = [{(1, 1, size, size), (len(x), 1, size, size)} for size in sizes]
        if len(shapes) != len(sizes) or any(have not in fit for have, fit in zip(shapes, wanted)):
            raise ValueError(f"GFPGAN: expected maps of noise (B, 1, h, h) for h in {sizes}, got {shapes}")
        return [one.to(x) for one in noise]


class _Condition(nn.Sequential):
    """What scales or shifts half of the decoder's channels: (B, C, h, w) -> the same shape."""

    def __init__(self, channels: int, scaled: bool) -> None:
        super().__init__(_conv(channels, channels, 3, scaled), _conv(channels, channels, 3, scaled))
        self.gain = SQRT2 if scaled else 1.0

    def forward(self, x: Tensor) -> Tensor:
        return self[1](activate(self[0](x), self.gain))
