"""The backbones of RetinaFace: features at strides 8, 16 and 32. Their attributes have the files' names.

ResNet-50 (He et al. 2016, arXiv:1512.03385, table 1). A block has its stride in the 3x3 convolution, where
the paper has it in the first 1x1 one: the files come from torchvision's backbone, whose documentation says so
("ResNet V1.5", https://pytorch.org/vision/stable/models/resnet.html).

MobileNet v1 (Howard et al. 2017, arXiv:1704.04861) of a quarter of the width. Its strides are those of the
paper's table 1, with 1 in the last block, where the table's 2 contradicts its own sizes. Its activations have
the slope 0.1, as in the implementation whose files are read (https://github.com/biubug6/Pytorch_Retinaface).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

MOBILE_SLOPE = 0.1
BLOCKS = (3, 4, 6, 3)  # of ResNet-50's layers
EXPANSION = 4
# MobileNet's stages after the first convolution: (channels as multiples of the stem's, stride) of each block.
STAGES = (
    ((2, 1), (4, 2), (4, 1), (8, 2), (8, 1)),
    ((16, 2), *((16, 1),) * 5),
    ((32, 2), (32, 1)),
)


def conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution without bias, which a norm follows, padded by half its size."""
    padding = kernel // 2
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False)


class Bottleneck(nn.Module):
    """A residual block of ResNet-50: (B, C, h, w) -> (B, 4 * width, h / stride, w / stride)."""

    def __init__(self, in_channels: int, width: int, stride: int, shortcut: bool) -> None:
        super().__init__()
        out_channels = EXPANSION * width
        self.conv1, self.bn1 = conv(in_channels, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = conv(width, out_channels, 1), nn.BatchNorm2d(out_channels)
        self.downsample = (
            nn.Sequential(conv(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))
            if shortcut
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        h = F.relu(self.bn2(self.conv2(h)))
        return F.relu(self.bn3(self.conv3(h)) + self.downsample(x))


class ResNet50(nn.Module):
    """ResNet-50 without its classifier; `channels` are those of its three results."""

    def __init__(self, stem: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(3, stem, 7, 2), nn.BatchNorm2d(stem)
        layers, channels = [], stem
        for level, blocks in enumerate(BLOCKS):
            width = stem * 2**level
            layer = nn.Sequential()
            for i in range(blocks):
                stride = 2 if level > 0 and i == 0 else 1
                layer.append(Bottleneck(channels, width, stride, shortcut=i == 0))
                channels = EXPANSION * width
            layers.append(layer)
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        self.channels = tuple(EXPANSION * stem * 2**level for level in (1, 2, 3))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer1(F.max_pool2d(x, 3, 2, 1))
        features = []
        for layer in (self.layer2, self.layer3, self.layer4):
            x = layer(x)
            features.append(x)
        return features


class MobileNet(nn.Module):
    """MobileNet v1 without its classifier; `channels` are those of its three results."""

    def __init__(self, stem: int) -> None:
        super().__init__()
        first = nn.Sequential(conv(3, stem, 3, 2), nn.BatchNorm2d(stem), nn.LeakyReLU(MOBILE_SLOPE))
        stages, channels = [], stem
        for number, blocks in enumerate(STAGES):
            stage = nn.Sequential(first) if number == 0 else nn.Sequential()
            for multiple, stride in blocks:
                stage.append(self._block(channels, stem * multiple, stride))
                channels = stem * multiple
            stages.append(stage)
        self.stage1, self.stage2, self.stage3 = stages
        self.channels = tuple(stem * stage[-1][0] for stage in STAGES)

    @staticmethod
    def _block(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
        """A convolution of every channel by itself, then one of each pixel."""
        return nn.Sequential(
            conv(in_channels, in_channels, 3, stride, groups=in_channels),
            nn.BatchNorm2d(in_channels),
            nn.LeakyReLU(MOBILE_SLOPE),
            conv(in_channels, out_channels, 1),
            nn.BatchNorm2d(out_channels),
            nn.LeakyReLU(MOBILE_SLOPE),
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for stage in (self.stage1, self.stage2, self.stage3):
            x = stage(x)
            features.append(x)
        return features
