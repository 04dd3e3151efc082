"""DDIM: Song et al. 2021, "Denoising Diffusion Implicit Models" (arXiv:2010.02502).

The update (equation 12), with the paper's alpha_t being our alphas_cumprod[t]:

    x_prev = sqrt(alpha_prev) x_0 + sqrt(1 - alpha_prev - sigma^2) eps + sigma noise
    sigma  = eta sqrt((1 - alpha_prev) / (1 - alpha_t)) sqrt(1 - alpha_t / alpha_prev)          (equation 16)

eta = 0 is deterministic and follows the probability-flow ODE to first order; eta = 1 is DDPM's ancestral
sampling. CompVis: `DDIMSampler.p_sample_ddim` and `make_ddim_sampling_parameters`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ldm_core.noise_schedule import NoiseSchedule, Predict
from ldm_core.schedulers.base import Step, last_alpha_cumprod, require_noise
from ldm_core.schedulers.spacing import Spacing, TimestepSpaced


def ddim_sigma(alpha: float, alpha_prev: float, eta: float) -> float:
    """Standard deviation of the noise that a step adds (equation 16); 0 for eta = 0.

    Raises ValueError if eta > 0 and the step does not go towards less noise.
    """
    if eta == 0:
        return 0.0
    if alpha_prev < alpha:
        raise ValueError(
            f"a step with eta={eta} must go towards less noise, but alphas_cumprod falls from "
            f"{alpha} to {alpha_prev}; only eta=0 can run backwards"
        )
    return eta * math.sqrt((1 - alpha_prev) / (1 - alpha) * (1 - alpha / alpha_prev))


def ddim_update(
    schedule: NoiseSchedule,
    x0: Tensor,
    eps: Tensor,
    t: float,
    t_prev: float,
    *,
    set_alpha_to_one: bool = False,
    eta: float = 0.0,
    noise: Tensor | None = None,
) -> Tensor:
    """x_{t_prev} from the x_0 and eps predicted at t, of the same shape (equation 12).

    With eta = 0, t_prev may also be larger than t, which is DDIM inversion. Raises ValueError if sigma > 0
    and `noise` is missing.
    """
    alpha_prev = last_alpha_cumprod(schedule, t_prev, set_alpha_to_one)
    sigma = ddim_sigma(schedule.alpha_cumprod(t), alpha_prev, eta)
    # For eta <= 1 the exact value is never negative; the clamp removes rounding errors.
    direction = math.sqrt(max(0.0, 1 - alpha_prev - sigma**2))
    x_prev = math.sqrt(alpha_prev) * x0 + direction * eps
    if sigma == 0:
        return x_prev
    return x_prev + sigma * require_noise(noise, x_prev)


@dataclass(frozen=True)
class DDIM(TimestepSpaced):
    """One network call per step. The defaults reproduce CompVis's `DDIMSampler` if n divides T.

    eta: 0 (deterministic) to 1 (ancestral). spacing, steps_offset: see `ldm_core.schedulers.spacing`.
    set_alpha_to_one: end at the clean image instead of at alphas_cumprod[0], where CompVis ends.
    """

    eta: float = 0.0
    spacing: Spacing = "leading"
    steps_offset: int = 1
    set_alpha_to_one: bool = False

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
        """From x_t (B, C, h, w) to x_{t_prev}; see `Scheduler.step`. Keeps no history."""
        prediction = predict(x, t)
        x_prev = ddim_update(
            predict.schedule,
            prediction.x0,
            prediction.eps,
            t,
            t_prev,
            set_alpha_to_one=self.set_alpha_to_one,
            eta=self.eta,
            noise=noise,
        )
        return Step(x_prev, prediction.x0)
