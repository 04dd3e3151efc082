"""Noise that is added to a condition, with a level that the U-Net sees (Ho et al. 2021, arXiv:2106.15282).

    z = a_n c + s_n eps,    eps ~ N(0, I),    n: the noise level, a timestep of a schedule of its own

The higher the level, the less the result follows the condition's details (section 4, "conditioning
augmentation"). Stability AI's counterparts are `ImageConcatWithNoiseAugmentation` of
`ldm.modules.diffusionmodules.upscaling`, and `CLIPEmbeddingNoiseAugmentation` of
`ldm.modules.encoders.modules`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ldm_core.noise import Generators, generators, image_seeds, randn
from ldm_core.noise_schedule import NoiseSchedule


def with_noise(schedule: NoiseSchedule, x: Tensor, levels: Tensor, generator: Generators) -> Tensor:
    """The rows of x (B, ...) with noise of their levels, LongTensor (B,). Level 0 has noise, too.

    generator: one for all rows or one per row.
    """
    return schedule.add_noise(x, randn(x.shape, generator).to(x), levels)


def per_image(given: Generators, count: int) -> tuple[list[int], list[torch.Generator]]:
    """For each image, the index of its input and its generator.

    given: one generator for each of `count` inputs, or several each, for as many images of it; None: one with
        a random seed each. Raises ValueError for other numbers.
    """
    if given is None:
        given = generators(image_seeds(None, count))
    if isinstance(given, torch.Generator) or len(given) == 0 or len(given) % count:
        found = 1 if isinstance(given, torch.Generator) else len(given)
        raise ValueError(f"expected a list with generators for each of {count} inputs, got {found}")
    return [image * count // len(given) for image in range(len(given))], list(given)
