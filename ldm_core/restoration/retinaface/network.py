"""RetinaFace: for every anchor of a photo, whether it is a face, its box, and five points of it.

Deng et al. 2020, "RetinaFace: Single-Shot Multi-Level Face Localisation in the Wild" (arXiv:1905.00641), in
the form of the PyTorch implementation that the restoration scripts use:

    backbone -> feature pyramid (Lin et al. 2017, arXiv:1612.03144) -> context modules (SSH, Najibi et al.
    2017, arXiv:1708.03979) -> three 1x1 convolutions per level, for 2 anchors at each place

The attributes have the names that the files use.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_core.nn.blocks import fastest_layout
from ldm_core.restoration.retinaface.anchors import ANCHORS
from ldm_core.restoration.retinaface.backbones import MobileNet, ResNet50, conv
from ldm_core.restoration.retinaface.config import RetinaFaceConfig

MEAN = (104.0, 117.0, 123.0)  # of blue, green and red
NARROW = 64  # pyramids of at most this width, MobileNet's, have activations with SLOPE; others have ReLU
SLOPE = 0.1


def _normed(in_channels: int, out_channels: int, kernel: int, slope: float | None) -> nn.Sequential:
    """A convolution, a norm, and a leaky ReLU with this slope, or none for None."""
    layers = [conv(in_channels, out_channels, kernel), nn.BatchNorm2d(out_channels)]
    return nn.Sequential(*layers, *([] if slope is None else [nn.LeakyReLU(slope)]))


class Pyramid(nn.Module):
    """Three levels of features, each with what the coarser ones know: (B, width, h, w) each."""

    def __init__(self, channels: tuple[int, ...], width: int, slope: float) -> None:
        super().__init__()
        self.output1, self.output2, self.output3 = (_normed(own, width, 1, slope) for own in channels)
        self.merge1, self.merge2 = (_normed(width, width, 3, slope) for _ in range(2))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        fine, middle, coarse = (
            lateral(x) for lateral, x in zip((self.output1, self.output2, self.output3), features)
        )
        middle = self.merge2(middle + F.interpolate(coarse, size=middle.shape[2:], mode="nearest"))
        fine = self.merge1(fine + F.interpolate(middle, size=fine.shape[2:], mode="nearest"))
        return [fine, middle, coarse]


class Context(nn.Module):
    """Windows of 3x3, 5x5 and 7x7 pixels, the larger ones as stacks of 3x3: the same shape."""

    def __init__(self, width: int, slope: float) -> None:
        super().__init__()
        quarter = width // 4
        self.conv3X3 = _normed(width, width // 2, 3, None)
        self.conv5X5_1 = _normed(width, quarter, 3, slope)
        self.conv5X5_2 = _normed(quarter, quarter, 3, None)
        self.conv7X7_2 = _normed(quarter, quarter, 3, slope)
        self.conv7x7_3 = _normed(quarter, quarter, 3, None)

    def forward(self, x: Tensor) -> Tensor:
        five = self.conv5X5_1(x)
        seven = self.conv7x7_3(self.conv7X7_2(five))
        return F.relu(torch.cat([self.conv3X3(x), self.conv5X5_2(five), seven], dim=1))


class Head(nn.Module):
    """Values for every anchor: (B, width, h, w) -> (B, h * w * anchors, values)."""

    def __init__(self, width: int, values: int) -> None:
        super().__init__()
        self.values = values
        self.conv1x1 = nn.Conv2d(width, ANCHORS * values, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv1x1(x).permute(0, 2, 3, 1).reshape(len(x), -1, self.values)


class RetinaFace(nn.Module):
    """Photos to offsets, logits and points of all anchors; `decode` turns these into faces."""

    def __init__(self, config: RetinaFaceConfig) -> None:
        super().__init__()
        self.config = config
        slope = SLOPE if config.width <= NARROW else 0.0
        self.body = ResNet50(config.stem) if config.backbone == "resnet50" else MobileNet(config.stem)
        self.fpn = Pyramid(self.body.channels, config.width, slope)
        self.ssh1, self.ssh2, self.ssh3 = (Context(config.width, slope) for _ in range(3))
        self.ClassHead = nn.ModuleList(Head(config.width, 2) for _ in range(3))
        self.BboxHead = nn.ModuleList(Head(config.width, 4) for _ in range(3))
        self.LandmarkHead = nn.ModuleList(Head(config.width, 10) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(box offsets (B, A, 4), logits of "no face" and "face" (B, A, 2), point offsets (B, A, 10)).

        x: photos (B, 3, H, W) of any size, RGB in [0, 255]. A: the anchors, as `anchors` lists them.
        Raises ValueError for another shape.
        """
        if x.ndim != 4 or x.shape[1] != 3 or 0 in x.shape or not x.is_floating_point():
            raise ValueError(
                f"RetinaFace: expected photos of (B, 3, H, W) of a floating-point type, got {tuple(x.shape)} "
                f"of {x.dtype}"
            )
        x = x.flip(1) - torch.tensor(MEAN).to(x)[:, None, None]  # the files expect BGR
        pyramid = self.fpn(self.body(fastest_layout(x)))
        levels = [ssh(level) for ssh, level in zip((self.ssh1, self.ssh2, self.ssh3), pyramid)]

        def joined(heads: nn.ModuleList) -> Tensor:
            return torch.cat([head(level) for head, level in zip(heads, levels)], dim=1)

        return joined(self.BboxHead), joined(self.ClassHead), joined(self.LandmarkHead)
