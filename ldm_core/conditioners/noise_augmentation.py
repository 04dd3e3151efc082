"""Noise that is added to a condition, with a level that the U-Net sees (Ho et al. 2021, arXiv:2106.15282).

    z = a_n c + s_n eps,    eps ~ N(0, I),    n: the noise level, a timestep of a schedule of its own

The higher the level, the less the result follows the condition's details (section 4, "conditioning
augmentation"). Stability AI's counterparts are `ImageConcatWithNoiseAugmentation` of
`ldm.modules.diffusionmodules.upscaling`, and `CLIPEmbeddingNoiseAugmentation` of
`ldm.modules.encoders.modules`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ldm_core.noise import Generators, generators, image_seeds, randn
from ldm_core.noise_schedule import NoiseSchedule


def with_noise(schedule: NoiseSchedule, x: Tensor, levels: Sequence[int], generator: Generators) -> Tensor:
    """The rows of x (B, ...) with noise of their levels. Also at level 0, the least of the schedule.

    generator: one for all rows or one per row.
    """
    return schedule.add_noise(x, randn(x.shape, generator).to(x), torch.tensor(levels))


def one_per_image(given: Generators, count: int) -> list[torch.Generator]:
    """The generators of the images; with None, new ones with random seeds. Raises ValueError otherwise."""
    if given is None:
        return generators(image_seeds(None, count))
    if isinstance(given, torch.Generator) or len(given) != count:
        found = 1 if isinstance(given, torch.Generator) else len(given)
        raise ValueError(f"expected one generator per image in a list of {count}, got {found}")
    return list(given)
