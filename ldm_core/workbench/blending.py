"""`blend`: new pictures from several. What it does depends on the model:

unCLIP          draws from the weighted mean of the pictures' CLIP embeddings (Ramesh et al. 2022,
                arXiv:2204.06125, section 3.2), so that it mixes what they show
IP-Adapter      draws with all pictures as one image prompt: their tokens side by side, without weights
any other       mixes their latents and the embeddings of their prompts linearly, adds noise, and draws the
                rest of the way (Ho et al. 2020, arXiv:2006.11239, section 4.3): one picture over the other,
                which becomes one thing where the noise hides the difference
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ldm_core import LatentDiffusion, Sampler
from ldm_core.schedulers import truncate
from ldm_core.support.printable import shown
from ldm_core.workbench.noise import mixed_noise

if TYPE_CHECKING:
    from PIL.Image import Image


def shares(weights: Sequence[float] | None, count: int) -> list[float]:
    """Weights that sum to 1. Raises ValueError unless there are two pictures or more, with a weight each."""
    if count < 2:
        raise ValueError(f"blend takes two pictures or more, got {count}")
    given = [1.0] * count if weights is None else list(weights)
    numbers = all(isinstance(one, int | float) and math.isfinite(one) and one >= 0 for one in given)
    if len(given) != count or not numbers or sum(given) <= 0:
        raise ValueError(
            f"blend takes {count} weights of 0 or more with a positive sum, got {shown(weights)}"
        )
    return [one / sum(given) for one in given]


def mixed_contexts(model: LatentDiffusion, prompts: Sequence[str], weights: Sequence[float]) -> Tensor:
    """The weighted mean of the prompts' contexts, (1, M, width)."""
    contexts = [model.condition(prompt).context for prompt in prompts]
    return _mean([context for context in contexts if context is not None], weights)


@torch.no_grad()
def mixed_latents(model: LatentDiffusion, images: Sequence[Image], weights: Sequence[float]) -> Tensor:
    """The weighted mean of the pictures' latents (1, C, h, w), each without noise."""
    latents = []
    for image in images:
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        pixels = pixels.view(1, image.height, image.width, 3).permute(0, 3, 1, 2).float()
        latents.append(model.encode_image((pixels / 127.5 - 1).to(model.device)))
    return _mean(latents, weights)


def draw_between(
    sampler: Sampler, latent: Tensor, strength: float, seeds: Sequence[int], steps: int, **options: Any
) -> list[Image]:
    """Pictures from a latent with noise: img2img of a picture that exists only as a latent."""
    schedule = sampler.model.noise_schedule
    start, pairs = truncate(sampler.scheduler.timesteps(schedule, steps), strength)
    noise = torch.cat([mixed_noise([(seed, 1.0)], latent.shape) for seed in seeds])
    begun = schedule.add_noise(latent.expand_as(noise), noise.to(latent), start)
    f = sampler.model.config.autoencoder.downsampling
    return sampler.txt2img(
        latent=begun,
        timesteps=pairs,
        steps=steps,
        num_images=len(seeds),
        seed=list(seeds),
        height=latent.shape[2] * f,
        width=latent.shape[3] * f,
        **options,
    )


def _mean(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    return torch.stack([weight * tensor for weight, tensor in zip(weights, tensors)]).sum(dim=0)
