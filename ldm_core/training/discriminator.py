"""PatchGAN: a convolutional discriminator that classifies every patch of an image as real or fake.

Isola et al. 2017 (arXiv:1611.07004, section 3.2.2 and appendix 6.1.2), as the latent diffusion paper uses it
(arXiv:2112.10752, section 3.1 and appendix G). Counterpart: `NLayerDiscriminator` of taming-transformers,
`taming.modules.discriminator.model`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PatchDiscriminator(nn.Sequential):
    """Images (B, 3, H, W) in [-1, 1] to one logit per patch, (B, 1, h, w); positive for real patches.

    channels: of the first layer; doubled in each further layer up to eightfold. layers: how many layers have
    stride 2; with 3, the receptive field of a logit is 70 x 70 pixels.

    Batch norms always use the batch's statistics.
    """

    def __init__(self, channels: int = 64, layers: int = 3, in_channels: int = 3) -> None:
        modules: list[nn.Module] = [nn.Conv2d(in_channels, channels, 4, 2, padding=1), nn.LeakyReLU(0.2)]
        widths = [channels * min(2**i, 8) for i in range(layers + 1)]
        for i in range(1, layers + 1):
            stride = 2 if i < layers else 1
            modules += [
                nn.Conv2d(widths[i - 1], widths[i], 4, stride, padding=1, bias=False),
                nn.BatchNorm2d(widths[i], track_running_stats=False),
                nn.LeakyReLU(0.2),
            ]
        super().__init__(*modules, nn.Conv2d(widths[-1], 1, 4, 1, padding=1))
        for module in self:
            _initialise(module)


def _initialise(module: nn.Module) -> None:
    """As in pix2pix: weights from N(0, 0.02^2), scales of norms from N(1, 0.02^2)."""
    if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
        nn.init.normal_(module.weight, 1.0 if isinstance(module, nn.BatchNorm2d) else 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss: (E[max(0, 1 - D(x))] + E[max(0, 1 + D(x'))]) / 2 (Lim and Ye 2017)."""
    return (torch.relu(1 - real).mean() + torch.relu(1 + fake).mean()) / 2
