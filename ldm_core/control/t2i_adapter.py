"""T2I-Adapter: features for each level of the U-Net, from a hint alone.

Mou et al. 2023, "T2I-Adapter: Learning Adapters to Dig out More Controllable Ability for Text-to-Image
Diffusion Models" (arXiv:2302.08453, section 3.2). The hint's pixels become channels (f x f of them at each
latent pixel), and each level halves the size. Features depend neither on the noisy latent nor on the
timestep, so a run computes them once. The authors' counterparts are `Adapter` and `Adapter_light`; diffusers'
is `T2IAdapter`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from ldm_core.support.limits import MAX_DEPTH, MAX_SIZE, make_tuples, require, require_sizes, require_whole

Kind = Literal["full", "light"]
LIGHTER = 4  # the factor by which a light adapter's blocks are narrower than its features


@dataclass(frozen=True)
class T2IAdapterConfig:
    """channels: of each level's features, as in the U-Net. downsampling: of the hint to the latent's size.

    kind: "full", or "light" (color), whose blocks have a quarter of the channels.
    """

    hint_channels: int = 3
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    num_res_blocks: int = 2
    downsampling: int = 8
    kind: Kind = "full"

    def __post_init__(self) -> None:
        part = "t2i_adapter"
        make_tuples(self)
        require_whole(part, self, "hint_channels", 1, MAX_SIZE)
        require_whole(part, self, "num_res_blocks", 1, MAX_DEPTH)
        require_whole(part, self, "downsampling", 1, 64)
        require_sizes(part, self, "channels", low=1)
        require(len(self.channels) > 0, f"{part}: channels must not be empty")
        require(self.kind in ("full", "light"), f"{part}: kind must be 'full' or 'light', not {self.kind!r}")


class AdapterBlock(nn.Module):
    """x + conv2(relu(conv1(x)))."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, h, w) -> the same shape."""
        return x + self.conv2(F.relu(self.conv1(x)))


class AdapterLevel(nn.Module):
    """Halve the size (not on the first level), change the channels, blocks."""

    def __init__(self, channels: int, width: int, out_channels: int, blocks: int, kernel: int) -> None:
        super().__init__()
        self.in_conv = nn.Conv2d(channels, width, 1) if channels != width else None
        self.blocks = nn.ModuleList(AdapterBlock(width, kernel) for _ in range(blocks))
        self.out_conv = nn.Conv2d(width, out_channels, 1) if width != out_channels else None

    def forward(self, x: Tensor, halve: bool) -> Tensor:
        """(B, channels, h, w) -> (B, out_channels, h, w), or half of h and w with `halve`."""
        x = F.avg_pool2d(x, 2) if halve else x
        x = x if self.in_conv is None else self.in_conv(x)
        for block in self.blocks:
            x = block(x)
        return x if self.out_conv is None else self.out_conv(x)


class T2IAdapter(nn.Module):
    """Hints (B, hint_channels, f * h, f * w) in [0, 1] to features (B, C, h, w), (B, C', h / 2, w / 2), …"""

    def __init__(self, config: T2IAdapterConfig) -> None:
        super().__init__()
        self.config = config
        inside = config.hint_channels * config.downsampling**2
        light = config.kind == "light"
        self.conv_in = None if light else nn.Conv2d(inside, config.channels[0], 3, padding=1)
        before = inside if light else config.channels[0]
        self.levels = nn.ModuleList()
        for channels in config.channels:
            width = channels // LIGHTER if light else channels
            self.levels.append(
                AdapterLevel(before, width, channels, config.num_res_blocks, 3 if light else 1)
            )
            before = channels

    def forward(self, hint: Tensor) -> tuple[Tensor, ...]:
        """The features of each level. Raises ValueError for hints of another shape."""
        channels, f = self.config.hint_channels, self.config.downsampling
        unit = f * 2 ** (len(self.levels) - 1)
        if hint.ndim != 4 or hint.shape[1] != channels or hint.shape[2] % unit or hint.shape[3] % unit:
            raise ValueError(
                f"t2i_adapter: expected a hint of (B, {channels}, H, W) with H and W multiples of {unit}, "
                f"got {tuple(hint.shape)}"
            )
        x = F.pixel_unshuffle(hint, f)  # (B, C, f * h, f * w) -> (B, C * f * f, h, w)
        x = x if self.conv_in is None else self.conv_in(x)
        features = []
        for number, level in enumerate(self.levels):
            x = level(x, halve=number > 0)
            features.append(x)
        return tuple(features)
