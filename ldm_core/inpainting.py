"""Inpainting: keep the known part of an image and generate the rest.

A U-Net trained for inpainting takes the mask and the masked image as additional input channels. With any
other, the known part is restored after every step (Lugmayr et al. 2022, arXiv:2201.09865, equation 8).
CompVis's counterparts: `scripts/inpaint_st.py`, and `mask` and `x0` of `DDIMSampler.ddim_sampling`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_core.model import LatentDiffusion
from ldm_core.noise import Generators
from ldm_core.noise_schedule import NoiseSchedule


@dataclass(frozen=True)
class KnownPart:
    """The known part of the latents, for a U-Net without a mask input.

    mask: (B, 1, h, w), 1 where the latent is repainted. x0: the known latents (B, C, h, w). noise: standard
    normal, in the shape of x0.
    """

    mask: Tensor
    x0: Tensor
    noise: Tensor
    schedule: NoiseSchedule

    def put_back(self, latent: Tensor, t: float) -> Tensor:
        """The latent at timestep t (-1: the clean image), with the known part noised to t."""
        known = self.schedule.add_noise(self.x0, self.noise, t)
        return self.mask * latent + (1 - self.mask) * known


def latent_mask(mask: Tensor, factor: int) -> Tensor:
    """A pixel mask (B, 1, H, W) as a latent mask (B, 1, H/f, W/f): the maximum over each f×f block."""
    return F.max_pool2d(mask, factor)


def inpainting_condition(
    model: LatentDiffusion, image: Tensor, mask: Tensor, generator: Generators
) -> Tensor:
    """The mask and the masked image (B, 1 + C, h, w), the additional input of an inpainting U-Net.

    As in `inpaint_st.py`: the mask is thresholded at 0.5 and resized to the latents by nearest neighbour; the
    repainted part of the image is grey. image: (B, 3, H, W) in [0, 1]. mask: (B, 1, H, W).
    """
    hard = (mask >= 0.5).float()
    masked = model.encode_image((image * 2 - 1) * (1 - hard), generator)
    small = F.interpolate(hard, size=masked.shape[2:], mode="nearest").to(masked)
    return torch.cat([small, masked], dim=1)
