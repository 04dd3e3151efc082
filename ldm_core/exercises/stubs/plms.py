"""Exercise 11: PLMS."""

from typing import Any

from torch import Tensor

from ldm_core.noise_schedule import NoiseSchedule, Predict
from ldm_core.schedulers import Step, ddim_update, spaced_pairs


class PLMS:
    """A scheduler: DDIM's update, with a combination of this step's eps and up to three earlier ones."""

    def timesteps(self, schedule: NoiseSchedule, n: int) -> list[tuple[float, float]]:
        """The pairs (t, t_prev) of a run of n steps, noisiest first; the last t_prev is -1."""
        return spaced_pairs(len(schedule), n, "leading", 1)

    def step(
        self, predict: Predict, x: Tensor, t: float, t_prev: float, history: Any, noise: Tensor | None
    ) -> Step:
        """From x at t (B, C, h, w) to x at t_prev: Step(x_prev, x0, history for the next step).

        predict: predict(x, t).eps is the predicted noise (B, C, h, w); t in 0..T-1.
        history: None at the first step, and then what the previous step returned. noise: not needed.
        """
        raise NotImplementedError

    def move(
        self, schedule: NoiseSchedule, x: Tensor, eps: Tensor, t: float, t_prev: float
    ) -> tuple[Tensor, Tensor]:
        """DDIM's update (the paper's equation 11): x at t_prev and x_0, each (B, C, h, w)."""
        x0 = schedule.x0_from_eps(x, eps, t)
        return ddim_update(schedule, x0, eps, t, t_prev), x0
