"""Gaussian data, whose exact predictions are known, to test schedulers against the exact solution.

For x_0 ~ N(mu, c^2) in every pixel, x_t ~ N(a_t mu, a_t^2 c^2 + s_t^2), and the best prediction follows from
Gaussian conditioning. The probability-flow ODE, which deterministic schedulers integrate (Song et al. 2021,
arXiv:2011.13456, section 4.3), keeps (x_t - a_t mu) / std_t constant; ancestral ones must end in N(mu, c^2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm_core.noise_schedule import NoiseSchedule, Prediction


@dataclass(frozen=True)
class GaussianData:
    """A `Predict` that is exact for x_0 ~ N(mean, deviation^2), also at alphas_cumprod 0."""

    schedule: NoiseSchedule
    mean: float = 0.3
    deviation: float = 0.5

    def __call__(self, x: Tensor, t: float) -> Prediction:
        """E[x_0 | x_t] and E[eps | x_t], shapes as x."""
        a, s = self.schedule.signal_and_noise(t)
        score = (x - a * self.mean) / self.std(t) ** 2
        return Prediction(x0=self.mean + a * self.deviation**2 * score, eps=s * score)

    def std(self, t: float) -> float:
        """The standard deviation of x_t."""
        a, s = self.schedule.signal_and_noise(t)
        return math.hypot(a * self.deviation, s)

    def flow(self, x: Tensor, t: float, to: float) -> Tensor:
        """Solve the probability-flow ODE from x at timestep t to timestep `to`; -1 is the clean image."""
        a, a_to = self.schedule.signal_and_noise(t)[0], self.schedule.signal_and_noise(to)[0]
        return a_to * self.mean + self.std(to) * (x - a * self.mean) / self.std(t)

    def start(self, t: float, count: int) -> Tensor:
        """Normal quantiles with exactly the mean and variance of x_t: float64 (count,)."""
        levels = (torch.arange(count, dtype=torch.float64) + 0.5) / count
        z = torch.special.ndtri(levels)
        z = z / z.square().mean().sqrt()
        return self.schedule.signal_and_noise(t)[0] * self.mean + self.std(t) * z


def independent_noise(x: Tensor, generator: torch.Generator) -> Tensor:
    """Random numbers (count,) with exactly mean 0, variance 1 and no correlation with x.

    With such noise, a linear step has the moments of infinitely many samples.
    """
    z = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    z, centred = z - z.mean(), x - x.mean()
    z = z - (z @ centred) / (centred @ centred).clamp(min=1e-30) * centred
    return z / z.square().mean().sqrt()
