"""Initial noise mixed from that of several seeds: a picture drawn from it is a variation of the first seed's.

    x = cos(a pi/2) x + sin(a pi/2) n        n: the noise of the next seed; a: its amount, in [0, 1]

Since cos^2 + sin^2 = 1 and the noises are independent, x stays standard normal, which a mean would not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Mixture = Sequence[tuple[int, float]]


def mixed_noise(mixture: Mixture, shape: Sequence[int]) -> Tensor:
    """The noise of pairs (seed, amount), float32 on the CPU; of one pair, the sampler's for this seed."""
    noise = torch.zeros(*shape)
    for number, (seed, amount) in enumerate(mixture):
        own = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
        angle = amount * math.pi / 2
        noise = own if number == 0 else math.cos(angle) * noise + math.sin(angle) * own
    return noise
