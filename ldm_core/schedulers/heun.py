"""Heun's method: Karras et al. 2022, "Elucidating the Design Space …" (arXiv:2206.00364), algorithm 1.

In x / a over sigma = s / a, the deterministic sampler (no churn) takes an Euler step to sigma_prev, and then
repeats the step with the mean of the slopes at its two ends:

    x_prev / a_prev = x / a + (d + d_prev) / 2 dt
    d = eps(x, t),   d_prev = eps(x_euler, t_prev),   dt = sigma_prev - sigma

The method is second order and calls the network twice per step. k-diffusion: `sample_heun`.
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
class Heun(SolverSpaced):
    """Deterministic, no history, 2n - 1 network calls in n steps: the last step is Euler's, with one call.

    spacing, steps_offset, set_alpha_to_one: as in `Euler`. diffusers: `HeunDiscreteScheduler`.
    """

    spacing: SolverSpacing = "trailing"
    steps_offset: int = 1
    set_alpha_to_one: bool = True
    adds_noise = False

    def step(
        self, predict: Predict, x: Tensor, t: float, t_prev: float, history: Any, noise: Tensor | None
    ) -> Step:
        """From x_t (B, C, h, w) to x_{t_prev}; see `Scheduler.step`. Ignores `noise`.

        The `x0` of the returned step is the first prediction. Raises ValueError in pure noise, where sigma is
        infinite.
        """
        start = level_at(predict.schedule, t)
        end = level_at(predict.schedule, t_prev, self.set_alpha_to_one)
        dt = end.sigma - start.sigma
        now = predict(x, t)
        d = now.eps
        x_prev = end.a * (x / start.a + d * dt)
        if t_prev != -1:
            d_prev = predict(x_prev, t_prev).eps
            x_prev = end.a * (x / start.a + (d + d_prev) / 2 * dt)
        return Step(x_prev, now.x0)
