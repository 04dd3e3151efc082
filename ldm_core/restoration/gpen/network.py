"""GPEN: the features of a degraded face take the place of the noise of a StyleGAN2 decoder.

Yang et al. 2021, "GAN Prior Embedded Network for Blind Face Restoration in the Wild" (arXiv:2105.06070).

    F_1 … F_n = encoder(x)                       one map for each size (section 3.2, figure 2)
    w = mapping(linear(F_n))                     the style of all layers
    h <- activation([conv(h, w), a F_k] + b)     joined where StyleGAN2 adds noise; a is learned

Every layer's output has twice the channels of its convolution. There is no randomness. Blurs and resampling
are plain convolutions here, with the filters that the files contain, and run on every device.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from ldm_core.nn.blocks import fastest_layout
from ldm_core.restoration.gpen.config import GPENConfig
from ldm_core.restoration.inputs import require_faces
from ldm_core.restoration.stylegan import (
    Mapping,
    ModulatedConv,
    ScaledConv,
    ScaledLinear,
    ToRGB,
    Upsampling,
    activate,
    blur_kernel,
)


class Down(nn.Module):
    """A blur and a convolution of stride 2: (B, C, h, w) -> (B, O, h/2, w/2)."""

    kernel: Tensor

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.register_buffer("kernel", blur_kernel())
        self.conv = ScaledConv(in_channels, out_channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return activate(self.conv.blurred_half(x, self.kernel))


class StyleConv(nn.Module):
    """A modulated convolution, joined with a map, bias, activation: (B, I, h, w) -> (B, 2 * O, h', w')."""

    def __init__(
        self, in_channels: int, out_channels: int, style_dim: int, up: Upsampling | None = None
    ) -> None:
        super().__init__()
        self.conv = ModulatedConv(
            in_channels, out_channels, 3, style_dim, up=up, stored_kernel=up is not None
        )
        self.map_weight = nn.Parameter(torch.zeros(1))
        self.bias = nn.Parameter(torch.zeros(2 * out_channels))

    def forward(self, x: Tensor, style: Tensor, features: Tensor) -> Tensor:
        """features: the encoder's map of the result's size, (B, O, h', w')."""
        joined = torch.cat([self.conv(x, style), self.map_weight * features], dim=1)
        return activate(joined + self.bias[:, None, None])


class GPEN(nn.Module):
    """A degraded face (B, 3, size, size) in [-1, 1] to the restored one, of the same shape."""

    def __init__(self, config: GPENConfig) -> None:
        super().__init__()
        self.config = config
        widths, dim = config.widths, config.style_dim
        steps = list(pairwise(widths))  # from a level to the next finer one
        self.first = ScaledConv(3, widths[-1], 1)
        self.down = nn.ModuleList(Down(fine, coarse) for coarse, fine in reversed(steps))
        self.to_style = ScaledLinear(16 * widths[0], dim)
        self.mapping = Mapping(dim, config.mlp_layers)
        self.constant = nn.Parameter(torch.empty(1, widths[0], 4, 4).normal_())
        self.first_conv = StyleConv(widths[0], widths[0], dim)
        self.first_rgb = ToRGB(2 * widths[0], dim, up=None)
        self.convs, self.to_rgb = nn.ModuleList(), nn.ModuleList()
        for before, width in steps:
            self.convs.append(StyleConv(2 * before, width, dim, "transposed"))
            self.convs.append(StyleConv(2 * width, width, dim))
            self.to_rgb.append(ToRGB(2 * width, dim, up="transposed", stored_kernel=True))

    def forward(self, x: Tensor) -> Tensor:
        """The restored faces. Raises ValueError for pictures of another size."""
        require_faces("GPEN", x, self.config.size)
        features = [activate(self.first(fastest_layout(x)))]
        for block in self.down:
            features.append(block(features[-1]))
        # (B, C, 4, 4) -> (B, style_dim), from features in the order of channels, rows, columns
        style = self.mapping(activate(self.to_style(features[-1].flatten(1))))
        h = self.constant.expand(len(x), -1, -1, -1)
        h = self.first_conv(fastest_layout(h), style, features.pop())
        rgb = self.first_rgb(h, style)
        for level, to_rgb in enumerate(self.to_rgb):
            own = features.pop()
            for conv in self.convs[2 * level : 2 * level + 2]:
                h = conv(h, style, own)
            rgb = to_rgb(h, style, rgb)
        return rgb
