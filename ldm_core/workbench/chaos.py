"""`--chaos`: pictures of one prompt that differ more, by noise on the condition that fades during the run.

    y' = m + sqrt(g) (y - m) + sqrt(1 - g) d n        m, d: mean and standard deviation of each token
    g  = 1 - amount (1 - ramp)                         n: standard normal, one for each picture

After "CADS: Unleashing the Diversity of Diffusion Models through Condition-Annealed Sampling" (Sadat et al.
2023, arXiv:2310.17347). The ramp is 0 in the first steps and rises to 1, so that the last
steps see the prompt as it is. In the paper each step has noise of its own, which averages out over many
steps; here, a picture keeps its noise, as if it began with another prompt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ldm_core.condition import Condition
from ldm_core.guidance import Guidance, Network

TAU1, TAU2 = 0.1, 0.7  # of the time from 1, noise, to 0; the paper's are 0.6 and 0.9 for Stable Diffusion
STREAM = 2**31  # between the seeds of latents and of this noise


@dataclass(frozen=True)
class Chaos:
    """A guidance that calls another one with a noisy context; a condition without context stays as it is.

    guidance: the other one. amount: in [0, 1]. seeds: one per picture, from which its noise comes.
    """

    guidance: Guidance
    amount: float
    seeds: Sequence[int]

    def for_run(self) -> Chaos:
        """The guidance for one run."""
        inner: Any = self.guidance
        return replace(self, guidance=inner.for_run() if hasattr(inner, "for_run") else inner)

    def __call__(
        self,
        network: Network,
        x: Tensor,
        t: float,
        cond: Condition,
        uncond: Condition,
        scale: float,
        progress: float,
    ) -> Tensor:
        """The other guidance's prediction, for the noisy condition."""
        return self.guidance(network, x, t, self._noisy(cond, progress), uncond, scale, progress)

    def _noisy(self, cond: Condition, progress: float) -> Condition:
        share = 1 - self.amount * (1 - ramp(1 - progress))
        if share == 1 or cond.context is None:
            return cond
        # Apart from the latents' noise, which begins the numbers of the seed itself.
        draws = [torch.Generator().manual_seed((seed + STREAM) % 2**63) for seed in self.seeds]
        rows = [torch.randn(cond.context.shape[1:], generator=draw) for draw in draws]
        noisy = annealed(cond.context, share, torch.stack(rows))
        return replace(cond, context=noisy).on_side(True, len(noisy))


def ramp(time: float) -> float:
    """The ramp from 0 to 1. time: 1 is noise, 0 the image."""
    return min(max((TAU2 - time) / (TAU2 - TAU1), 0.0), 1.0)


def annealed(context: Tensor, share: float, noise: Tensor) -> Tensor:
    """y' for y and n (B, M, width), and g in [0, 1]."""
    y = context.float()
    mean, std = y.mean(dim=2, keepdim=True), y.std(dim=2, keepdim=True)
    mixed = mean + math.sqrt(share) * (y - mean) + math.sqrt(1 - share) * std * noise.to(y)
    return mixed.to(context.dtype)
