"""Euler's method in the variables of Karras et al. 2022, "Elucidating the Design Space …" (arXiv:2206.00364).

With sigma = s / a the probability-flow ODE is d(x / a) / d sigma = eps (equation 1). A step (algorithm 1
without churn and without the second-order correction) is

    x_prev / a_prev = x / a + d dt,   d = eps,   dt = sigma_prev - sigma

The method is first order. In exact arithmetic it equals DDIM with eta = 0; the default timesteps and the
final noise level differ. k-diffusion: `sample_euler`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ldm_core.noise_schedule import Predict
from ldm_core.schedulers.base import Step
from ldm_core.schedulers.level import level_at
from ldm_core.schedulers.sigma_spacing import SolverSpaced, SolverSpacing


@dataclass(frozen=True)
class Euler(SolverSpaced):
    """Deterministic, one network call per step, no history.

    spacing, steps_offset: see `sigma_spacing`. set_alpha_to_one: end at the clean image, or at
    alphas_cumprod[0].

    diffusers: `EulerDiscreteScheduler` without churn. Its "linspace" does not round timesteps, and it
    interpolates sigma between the table's entries; log sigma is interpolated here.
    """

    spacing: SolverSpacing = "trailing"
    steps_offset: int = 1
    set_alpha_to_one: bool = True
    adds_noise = False

    def step(
        self, predict: Predict, x: Tensor, t: float, t_prev: float, history: Any, noise: Tensor | None
    ) -> Step:
        """From x_t (B, C, h, w) to x_{t_prev}; see `Scheduler.step`. Ignores `noise`.

        Raises ValueError in pure noise, where sigma is infinite.
        """
        start = level_at(predict.schedule, t)
        end = level_at(predict.schedule, t_prev, self.set_alpha_to_one)
        dt = end.sigma - start.sigma
        now = predict(x, t)
        d = now.eps
        return Step(end.a * (x / start.a + d * dt), now.x0)
