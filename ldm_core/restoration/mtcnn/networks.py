"""The three networks of MTCNN, and their bundled weights.

Zhang et al. 2016, "Joint Face Detection and Alignment using Multi-task Cascaded Convolutional Networks"
(arXiv:1604.02878), figure 2. Each network is small and sees a square of 12, 24 or 48 pixels; the first is
fully convolutional, so that it slides over whole pictures.

The weights are those of facenet-pytorch 2.6.0 (MIT, copyright 2019 Timothy Esler; the licence is beside
them). They come from a version that reads pictures column by column, hence the transposition before the first
linear layer. The attributes have the names of the files.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from torch import Tensor, nn

from ldm_core.checkpoint.reader import read

WEIGHTS = Path(__file__).with_name("data") / "mtcnn.safetensors"

# Of the logits ("no face", "face").
FACE = 1


def _pool(size: int) -> nn.MaxPool2d:
    return nn.MaxPool2d(size, stride=2, ceil_mode=True)


def _columns_first(x: Tensor) -> Tensor:
    """Features (N, C, h, w) as vectors (N, w * h * C)."""
    return x.permute(0, 3, 2, 1).flatten(1)


class ProposalNet(nn.Module):
    """P-Net: for each square of 12 pixels, at a stride of 2, whether it is a face, and corrections of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1, self.pool1 = nn.Conv2d(3, 10, 3), nn.PReLU(10), _pool(2)
        self.conv2, self.prelu2 = nn.Conv2d(10, 16, 3), nn.PReLU(16)
        self.conv3, self.prelu3 = nn.Conv2d(16, 32, 3), nn.PReLU(32)
        self.conv4_1 = nn.Conv2d(32, 2, 1)
        self.conv4_2 = nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: (B, 3, H, W) in [-1, 1] -> (probabilities (B, h, w), corrections (B, 4, h, w))."""
        x = self.pool1(self.prelu1(self.conv1(x)))
        x = self.prelu2(self.conv2(x))
        x = self.prelu3(self.conv3(x))
        return self.conv4_1(x).softmax(dim=1)[:, FACE], self.conv4_2(x)


class RefinementNet(nn.Module):
    """R-Net: whether a square of 24 pixels is a face, and corrections of the square."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1, self.pool1 = nn.Conv2d(3, 28, 3), nn.PReLU(28), _pool(3)
        self.conv2, self.prelu2, self.pool2 = nn.Conv2d(28, 48, 3), nn.PReLU(48), _pool(3)
        self.conv3, self.prelu3 = nn.Conv2d(48, 64, 2), nn.PReLU(64)
        self.dense4, self.prelu4 = nn.Linear(3 * 3 * 64, 128), nn.PReLU(128)
        self.dense5_1 = nn.Linear(128, 2)
        self.dense5_2 = nn.Linear(128, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: (N, 3, 24, 24) in [-1, 1] -> (probabilities (N,), corrections (N, 4))."""
        x = self.pool1(self.prelu1(self.conv1(x)))
        x = self.pool2(self.prelu2(self.conv2(x)))
        x = self.prelu3(self.conv3(x))
        x = self.prelu4(self.dense4(_columns_first(x)))
        return self.dense5_1(x).softmax(dim=1)[:, FACE], self.dense5_2(x)


class OutputNet(nn.Module):
    """O-Net: whether a square of 48 pixels is a face, corrections of the square, and five points."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1, self.pool1 = nn.Conv2d(3, 32, 3), nn.PReLU(32), _pool(3)
        self.conv2, self.prelu2, self.pool2 = nn.Conv2d(32, 64, 3), nn.PReLU(64), _pool(3)
        self.conv3, self.prelu3, self.pool3 = nn.Conv2d(64, 64, 3), nn.PReLU(64), _pool(2)
        self.conv4, self.prelu4 = nn.Conv2d(64, 128, 2), nn.PReLU(128)
        self.dense5, self.prelu5 = nn.Linear(3 * 3 * 128, 256), nn.PReLU(256)
        self.dense6_1 = nn.Linear(256, 2)
        self.dense6_2 = nn.Linear(256, 4)
        self.dense6_3 = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x: (N, 3, 48, 48) in [-1, 1] -> (probabilities (N,), corrections (N, 4), points (N, 10)).

        The points are five x, then five y, as fractions of the square.
        """
        x = self.pool1(self.prelu1(self.conv1(x)))
        x = self.pool2(self.prelu2(self.conv2(x)))
        x = self.pool3(self.prelu3(self.conv3(x)))
        x = self.prelu4(self.conv4(x))
        x = self.prelu5(self.dense5(_columns_first(x)))
        return self.dense6_1(x).softmax(dim=1)[:, FACE], self.dense6_2(x), self.dense6_3(x)


class MTCNN(nn.Module):
    """The three networks; `find_faces` runs them one after another."""

    def __init__(self) -> None:
        super().__init__()
        self.pnet, self.rnet, self.onet = ProposalNet(), RefinementNet(), OutputNet()


@cache
def bundled() -> MTCNN:
    """The networks with the bundled weights, on the CPU, read at the first call."""
    networks = MTCNN()
    networks.load_state_dict(read(WEIGHTS).tensors)
    return networks.eval().requires_grad_(False)
