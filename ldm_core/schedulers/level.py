"""A noise level as the solvers parametrise it.

    x_t = a x_0 + s eps,   sigma = s / a,   lambda = log(a / s) = -log sigma

Karras et al. 2022 (arXiv:2206.00364) divide by a. Their variable x / a = x_0 + sigma eps obeys
d(x / a) / d sigma = eps (their equation 1), which Euler, Heun and LMS integrate. Lu et al. 2022b
(arXiv:2211.01095) integrate x / s over lambda, where the linear part of the equation has an exact solution
(their proposition 4.1); DPM-Solver++ and UniPC use that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ldm_core.noise_schedule import NoiseSchedule
from ldm_core.schedulers.base import last_alpha_cumprod


@dataclass(frozen=True)
class Level:
    """a and s at one timestep. a = 0 is pure noise; s = 0 is the clean image."""

    t: float
    a: float
    s: float

    @property
    def sigma(self) -> float:
        """s / a. Raises ValueError in pure noise, where it is infinite."""
        if self.a == 0:
            raise ValueError(
                f"sigma = s / a is infinite at timestep {self.t}, where alphas_cumprod is 0; DDIM, "
                "DPMSolverMultistep and UniPC can start there with a network that predicts v"
            )
        return self.s / self.a

    @property
    def log_snr(self) -> float:
        """lambda = log(a / s), for a level with both signal and noise."""
        return math.log(self.a) - math.log(self.s)


def level_at(schedule: NoiseSchedule, t: float, set_alpha_to_one: bool = True) -> Level:
    """The level of a timestep; at the end of a run (-1), the clean image or alphas_cumprod[0]."""
    alpha_cumprod = last_alpha_cumprod(schedule, t, set_alpha_to_one)
    return Level(t, math.sqrt(alpha_cumprod), math.sqrt(1 - alpha_cumprod))


def signal_weight(start: Level, end: Level) -> float:
    """a_end (1 - exp(-h)) for h = lambda_end - lambda_start, including infinite h."""
    return end.a - start.a * (end.s / start.s)


def along_lambda(x: Tensor, x0: Tensor, start: Level, end: Level) -> Tensor:
    """x at `end`, exact if the predicted x_0 is constant (Lu et al. 2022b, proposition 4.1)."""
    return (end.s / start.s) * x + signal_weight(start, end) * x0
