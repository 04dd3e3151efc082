"""DDPM's ancestral sampling: Ho et al. 2020, "Denoising Diffusion Probabilistic Models" (arXiv:2006.11239).

Each step draws from the posterior of the forward process, with the predicted x_0 in place of the true one
(equation 7 and algorithm 2):

    alpha = alphas_cumprod[t] / alphas_cumprod[t_prev],   beta = 1 - alpha
    mean  = sqrt(alphas_cumprod[t_prev]) beta / (1 - alphas_cumprod[t]) x_0
          + sqrt(alpha) (1 - alphas_cumprod[t_prev]) / (1 - alphas_cumprod[t]) x_t

Between neighbouring timesteps alpha and beta are those of the schedule, and n = T is the paper's chain. Over
a longer stride they are those of a forward process that goes from t_prev to t in one step. The last step ends
at the clean image and adds no noise. CompVis: `DDPM.q_posterior` and `p_sample`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from ldm_core.noise_schedule import Predict
from ldm_core.schedulers.base import Step, require_noise
from ldm_core.schedulers.spacing import Spacing, TimestepSpaced

Variance = Literal["fixed_small", "fixed_large"]


@dataclass(frozen=True)
class DDPM(TimestepSpaced):
    """One network call per step, and fresh noise at every step except the last.

    variance: "fixed_small" is the variance of the posterior, (1 - alphas_cumprod[t_prev]) /
    (1 - alphas_cumprod[t]) beta, which is exact for data that is a single point; "fixed_large" is beta, which
    is exact for data ~ N(0, I) (Ho et al., section 3.2). spacing, steps_offset: see
    `ldm_core.schedulers.spacing`.
    """

    variance: Variance = "fixed_small"
    spacing: Spacing = "leading"
    steps_offset: int = 0

    def __post_init__(self) -> None:
        if self.variance not in ("fixed_small", "fixed_large"):
            raise ValueError(f"variance must be 'fixed_small' or 'fixed_large', not {self.variance!r}")
        super().__post_init__()

    def step(
        self, predict: Predict, x: Tensor, t: float, t_prev: float, history: Any, noise: Tensor | None
    ) -> Step:
        """From x_t (B, C, h, w) to x_{t_prev}; see `Scheduler.step`. Keeps no history.

        Draws from equation 6 with the mean and variance of equation 7, for the predicted x_0: equation 11.
        Raises ValueError if t_prev is not below t, and if t_prev is not -1 and noise is missing.
        """
        if t_prev >= t:
            raise ValueError(f"a DDPM step goes to an earlier timestep, got t={t} and t_prev={t_prev}")
        x0 = predict(x, t).x0
        alpha_cumprod = predict.schedule.alpha_cumprod(t)
        alpha_cumprod_prev = predict.schedule.alpha_cumprod(t_prev)
        alpha = alpha_cumprod / alpha_cumprod_prev
        beta = 1 - alpha
        noise_ratio = (1 - alpha_cumprod_prev) / (1 - alpha_cumprod)
        x0_weight = math.sqrt(alpha_cumprod_prev) * beta / (1 - alpha_cumprod)
        mean = x0_weight * x0 + math.sqrt(alpha) * noise_ratio * x
        if t_prev == -1:
            return Step(mean, x0)
        variance = beta if self.variance == "fixed_large" else noise_ratio * beta
        return Step(mean + math.sqrt(variance) * require_noise(noise, x), x0)
