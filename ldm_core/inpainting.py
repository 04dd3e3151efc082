"""Inpainting: what is known of a picture stays, the rest is drawn.

A U-Net that was trained for it sees the mask and the masked image as further input channels. With any other,
the known part is put back after every step (Lugmayr et al. 2022, arXiv:2201.09865, equation 8).
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
    """The known part of the latents, for a U-Net that sees no mask.

    mask: (B, 1, h, w), 1 where the latent is repainted. x0: the known latents (B, C, h, w). noise: standard
    normal, as x0.
    """

    mask: Tensor
    x0: Tensor
    noise: Tensor
    schedule: NoiseSchedule

    def put_back(self, latent: Tensor, t: float) -> Tensor:
        """The latent at timestep t (-1: the clean image), with its known part noised to t."""
        known = self.schedule.add_noise(self.x0, self.noise, t)
        return self.mask * latent + (1 - self.mask) * known


def latent_mask(mask: Tensor, factor: int) -> Tensor:
    """A pixel mask (B, 1, H, W) to latents (B, 1, H/f, W/f): 1 where any of its pixels is repainted."""
    return F.max_pool2d(mask, factor)


def inpainting_condition(
    model: LatentDiffusion, image: Tensor, mask: Tensor, generator: Generators
) -> Tensor:
    """The mask and the masked image (B, 1 + C, h, w), which an inpainting U-Net takes after its latents.

    As in `inpaint_st.py`: the mask is cut at 0.5 and taken at the latents' resolution from the nearest pixel;
    the image is grey where it is to be repainted. image: (B, 3, H, W) in [0, 1]. mask: (B, 1, H, W).
    """
    hard = (mask >= 0.5).float()
    masked = model.encode_image((image * 2 - 1) * (1 - hard), generator)
    small = F.interpolate(hard, size=masked.shape[2:], mode="nearest").to(masked)
    return torch.cat([small, masked], dim=1)
