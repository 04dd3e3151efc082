"""Heun's method: Karras et al. 2022, "Elucidating the Design Space …" (arXiv:2206.00364), algorithm 1.

In x / a over sigma = s / a, an Euler step to sigma_prev, and then the step again with the mean of the slopes
at both of its ends (without churn: the deterministic sampler):

    x_prev / a_prev = x / a + (sigma_prev - sigma) (eps(x, t) + eps(x_euler, t_prev)) / 2

Second order, for two network calls a step. k-diffusion: `sample_heun`.
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
class Heun:
    """Deterministic, no history, 2n - 1 calls in n steps: the last leads to no timestep, and is Euler's.

    spacing, steps_offset, set_alpha_to_one: as in `Euler`. diffusers: `HeunDiscreteScheduler`.
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

        The step's x0 is the first of the two. Raises ValueError in pure noise, where sigma is infinite.
        """
        start = level_at(predict.schedule, t)
        end = level_at(predict.schedule, t_prev, self.set_alpha_to_one)
        stride = end.sigma - start.sigma
        first = predict(x, t)
        x_prev = along_sigma(x, [(stride, first.eps)], start, end)
        if t_prev != -1:
            second = predict(x_prev, t_prev)
            x_prev = along_sigma(x, [(stride / 2, first.eps), (stride / 2, second.eps)], start, end)
        return Step(x_prev, first.x0)
