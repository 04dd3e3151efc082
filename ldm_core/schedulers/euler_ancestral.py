"""Ancestral sampling by Euler's method: k-diffusion's `sample_euler_ancestral`.

Each step goes to a lower noise level than its target and adds fresh noise to reach the target (the variances
are those of Ho et al. 2020, arXiv:2006.11239, in sigma = s / a):

    sigma_up^2   = eta^2 sigma_prev^2 (sigma^2 - sigma_prev^2) / sigma^2
    sigma_down^2 = sigma_prev^2 - sigma_up^2
    x_prev / a_prev = x / a + (sigma_down - sigma) eps + sigma_up noise

In exact arithmetic it equals DDIM with the same eta. It solves a stochastic differential equation: with more
steps it does not converge to one image, and every number of steps gives a different one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ldm_core.noise_schedule import Predict
from ldm_core.schedulers.base import Step, require_noise
from ldm_core.schedulers.level import level_at
from ldm_core.schedulers.sigma_spacing import SolverSpaced, SolverSpacing


@dataclass(frozen=True)
class EulerAncestral(SolverSpaced):
    """One network call per step, and fresh noise at every step except the last, which ends without noise.

    eta: from 1 (all of the noise) to 0 (`Euler`). spacing, steps_offset: see `sigma_spacing`.
    diffusers: `EulerAncestralDiscreteScheduler`, which has eta = 1.
    """

    eta: float = 1.0
    spacing: SolverSpacing = "trailing"
    steps_offset: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be in [0, 1], not {self.eta!r}")
        super().__post_init__()

    @property
    def adds_noise(self) -> bool:
        """Whether `step` needs noise: for eta above 0."""
        return self.eta > 0

    def step(
        self, predict: Predict, x: Tensor, t: float, t_prev: float, history: Any, noise: Tensor | None
    ) -> Step:
        """From x_t (B, C, h, w) to x_{t_prev}; see `Scheduler.step`. Keeps no history.

        Raises ValueError if t_prev is not below t, if noise is missing, and in pure noise, where sigma is
        infinite.
        """
        if t_prev >= t:
            raise ValueError(f"an ancestral step goes to an earlier timestep, got t={t} and t_prev={t_prev}")
        start, end = level_at(predict.schedule, t), level_at(predict.schedule, t_prev)
        up = self.eta * end.sigma * math.sqrt(1 - (end.sigma / start.sigma) ** 2)
        down = math.sqrt(end.sigma**2 - up**2)
        dt = down - start.sigma
        now = predict(x, t)
        d = now.eps
        x_bar = x / start.a + d * dt
        if up > 0:
            x_bar = x_bar + up * require_noise(noise, x)
        return Step(end.a * x_bar, now.x0)
