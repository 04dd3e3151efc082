"""ParseNet: a residual encoder and decoder that label the parts of a face.

The network of facexlib and of Chen et al. 2021, "Progressive Semantic-Aware Style Transformation for Blind
Face Restoration" (arXiv:2009.08709). Class 0 is the background; the masks with which the scripts paste faces
back consist of the classes 1 to 13 and 15.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from ldm_core.nn.blocks import double, fastest_layout
from ldm_core.restoration.inputs import require_multiple
from ldm_core.restoration.parsenet.config import ParseNetConfig

SLOPE = 0.2

Resampling = Literal["none", "up", "down"]


class Conv(nn.Module):
    """A 3x3 convolution with reflected borders, and a norm and an activation if wanted.

    "up": of nearest-neighbour upsampling by 2; "down": with stride 2.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        resample: Resampling = "none",
        *,
        norm: bool = False,
        activation: bool = False,
    ) -> None:
        super().__init__()
        self.up = resample == "up"
        self.conv = nn.Conv2d(
            in_channels, out_channels, 3, stride=2 if resample == "down" else 1, bias=not norm
        )
        self.norm = nn.BatchNorm2d(out_channels) if norm else None
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = double(x) if self.up else x
        x = self.conv(F.pad(x, (1, 1, 1, 1), mode="reflect"))
        x = x if self.norm is None else self.norm(x)
        return F.leaky_relu(x, SLOPE) if self.activation else x


class Block(nn.Module):
    """A residual block: (B, C, h, w) -> (B, O, h', w')."""

    def __init__(self, in_channels: int, out_channels: int, resample: Resampling = "none") -> None:
        super().__init__()
        first: Resampling = "up" if resample == "up" else "none"
        second: Resampling = "down" if resample == "down" else "none"
        plain = resample == "none" and in_channels == out_channels
        self.shortcut = None if plain else Conv(in_channels, out_channels, resample)
        self.conv1 = Conv(in_channels, out_channels, first, norm=True, activation=True)
        self.conv2 = Conv(out_channels, out_channels, second, norm=True)

    def forward(self, x: Tensor) -> Tensor:
        return (x if self.shortcut is None else self.shortcut(x)) + self.conv2(self.conv1(x))


class ParseNet(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] -> (logits of the classes (B, classes, H, W), a picture (B, 3, H, W)).

    H and W are multiples of `config.downsampling`, and of two times that at least. The scripts give 512.
    """

    def __init__(self, config: ParseNetConfig) -> None:
        super().__init__()
        self.config = config
        steps = list(pairwise(config.widths))
        top = config.widths[-1]
        self.encoder = nn.ModuleList(
            [Conv(3, config.widths[0]), *(Block(fine, coarse, "down") for fine, coarse in steps)]
        )
        self.body = nn.ModuleList(Block(top, top) for _ in range(config.depth))
        self.decoder = nn.ModuleList(Block(coarse, fine, "up") for fine, coarse in reversed(steps))
        self.to_mask = Conv(config.widths[0], config.classes)
        self.to_picture = Conv(config.widths[0], 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, classes, H, W) and a picture (B, 3, H, W). Raises ValueError for other sizes."""
        require_multiple("ParseNet", x, self.config.downsampling)
        if min(x.shape[2:]) < 2 * self.config.downsampling:
            raise ValueError(
                f"ParseNet: H and W must be at least {2 * self.config.downsampling}, got {tuple(x.shape[2:])}"
            )
        x = fastest_layout(x)
        for block in self.encoder:
            x = block(x)
        out = x
        for block in self.body:
            out = block(out)
        x = x + out
        for block in self.decoder:
            x = block(x)
        return self.to_mask(x), self.to_picture(x)
