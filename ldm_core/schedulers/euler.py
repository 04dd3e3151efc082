"""Euler's method in the variables of Karras et al. 2022, "Elucidating the Design Space …" (arXiv:2206.00364).

With sigma = s / a the probability-flow ODE is d(x / a) / d sigma = eps (equation 1), and a step (algorithm 1
without its second half, and without churn) is

    x_prev / a_prev = x / a + (sigma_prev - sigma) eps

First order. In exact arithmetic it is DDIM with eta = 0; the two differ in which timesteps they visit by
default, and in where they end. k-diffusion: `sample_euler`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ldm_core.noise_schedule import NoiseSchedule, Predict
from ldm_core.schedulers.base import Step
from ldm_core.schedulers.level import along_sigma, level_at
from ldm_core.schedulers.sigma_spacing import SolverSpacing, check_solver_spacing, solver_pairs


@dataclass(frozen=True)
class Euler:
    """Deterministic, one call a step, no history.

    spacing, steps_offset: see `sigma_spacing`. set_alpha_to_one: end at the clean image, or at
    alphas_cumprod[0].

    diffusers: `EulerDiscreteScheduler` without churn. Its "linspace" does not round timesteps, and it
    interpolates sigma itself between the table's entries, where log sigma is interpolated here.
    """

    spacing: SolverSpacing = "trailing"
    steps_offset: int = 1
    set_alpha_to_one: bool = True

    def __post_init__(self) -> None:
        check_solver_spacing(self.spacing, self.steps_offset)

    def timesteps(self, schedule: NoiseSchedule, n: int) -> list[tuple[float, float]]:
        """The pairs (t, t_prev), noisiest first. ValueError for n outside 1..T."""
        return solver_pairs(schedule, n, self.spacing, self.steps_offset)

    def step(
        self, predict: Predict, x: Tensor, t: float, t_prev: float, history: Any, noise: Tensor | None
    ) -> Step:
        """From x_t (B, C, h, w) to x_{t_prev}; see `Scheduler.step`. Ignores `noise`.

        Raises ValueError in pure noise, where sigma is infinite.
        """
        start = level_at(predict.schedule, t)
        end = level_at(predict.schedule, t_prev, self.set_alpha_to_one)
        stride = end.sigma - start.sigma
        prediction = predict(x, t)
        return Step(along_sigma(x, [(stride, prediction.eps)], start, end), prediction.x0)
