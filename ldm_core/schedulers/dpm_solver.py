"""DPM-Solver++ (2M): Lu et al. 2022b, "DPM-Solver++: Fast Solver for Guided Sampling …" (arXiv:2211.01095).

With lambda = log(a / s), the probability-flow ODE of the predicted x_0 has the solution (proposition 4.1)

    x_t = (s_t / s_s) x_s + s_t * integral over lambda of exp(lambda) x_0(lambda)

Only the change of x_0 along lambda needs to be approximated. First order takes x_0 as constant, which is
DDIM. Second order (algorithm 2, "2M") extrapolates from this x_0 and the previous one; h and h_last are the
strides:

    D   = x_0 + (h / h_last) / 2 * (x_0 - x_0_last)
    x_t = (s_t / s_s) x_s + a_t (1 - exp(-h)) D

Each step calls the network once. Guidance amplifies x_0 less than eps, hence the use of x_0 for guided
sampling.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ldm_core.noise_schedule import Predict
from ldm_core.schedulers.base import Step
from ldm_core.schedulers.level import along_lambda, level_at
from ldm_core.schedulers.sigma_spacing import SolverSpaced, SolverSpacing

History = tuple[float, Tensor] | None  # the last step's timestep and its x_0; None at the first step


@dataclass(frozen=True)
class DPMSolverMultistep(SolverSpaced):
    """Deterministic, one network call per step; `history` is the previous step's (t, x_0).

    order: 2, or 1 for DDIM. lower_order_final: make the last step first-order. A last step to the clean image
    always is, because lambda is infinite there and cannot be extrapolated to.
    spacing, steps_offset, skip_last: see `sigma_spacing.solver_pairs`. set_alpha_to_one: end at the clean
    image, or at alphas_cumprod[0] (with a spacing by sigma the last step then changes nothing).

    diffusers: `DPMSolverMultistepScheduler` with algorithm_type "dpmsolver++" and solver_type "midpoint". Its
    lower_order_final has an effect below 15 steps only. It rounds Karras's timesteps for the network but uses
    the exact sigma.
    """

    order: Literal[1, 2] = 2
    spacing: SolverSpacing = "trailing"
    steps_offset: int = 1
    skip_last: bool = False
    set_alpha_to_one: bool = True
    lower_order_final: bool = True
    adds_noise = False

    def __post_init__(self) -> None:
        if self.order not in (1, 2):
            raise ValueError(f"order must be 1 or 2, not {self.order!r}")
        super().__post_init__()

    def step(
        self, predict: Predict, x: Tensor, t: float, t_prev: float, history: History, noise: Tensor | None
    ) -> Step:
        """From x_t (B, C, h, w) to x_{t_prev}; see `Scheduler.step`. Ignores `noise`."""
        start = level_at(predict.schedule, t)
        end = level_at(predict.schedule, t_prev, self.set_alpha_to_one)
        x0 = predict(x, t).x0
        # lambda is not finite in pure noise, so nothing can be extrapolated from there.
        remembered = (t, x0) if self.order == 2 and start.a > 0 else None
        is_plain = end.s == 0 or (t_prev == -1 and self.lower_order_final)
        if history is None or history[0] == t or is_plain:
            return Step(along_lambda(x, x0, start, end), x0, remembered)
        last_t, last_x0 = history
        last_stride = start.log_snr - level_at(predict.schedule, last_t).log_snr
        ahead = (end.log_snr - start.log_snr) / last_stride / 2
        return Step(along_lambda(x, x0 + ahead * (x0 - last_x0), start, end), x0, remembered)
