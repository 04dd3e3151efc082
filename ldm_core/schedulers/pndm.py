"""PNDM and PLMS: Liu et al. 2022, "Pseudo Numerical Methods for Diffusion Models" (arXiv:2202.09778).

A pseudo numerical method replaces the straight line of a classical solver with DDIM's update (the paper's
transfer part, equation 11) and combines several eps as the classical method combines slopes:

    Adams-Bashforth (equation 12)   one call per step, from the eps of this step and up to three earlier ones
    Runge-Kutta     (equation 13)   four calls: at t, twice half-way, and at t_prev
    improved Euler                  two calls: at t and at t_prev

The first steps have no earlier eps. With warmup="plms" the first step is an improved Euler step, and the
order of Adams-Bashforth grows from 2 to 4 (CompVis's `PLMSSampler`). With "runge_kutta" the first three steps
are Runge-Kutta steps (the paper's F-PNDM).

DDIM's update with a combined eps is second-order accurate in the step, whatever the order of the combination
(the paper's theorem; measured in tests/schedulers/test_convergence.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ldm_core.noise_schedule import NoiseSchedule, Predict
from ldm_core.schedulers.base import Step
from ldm_core.schedulers.ddim import ddim_update
from ldm_core.schedulers.spacing import Spacing, TimestepSpaced

Warmup = Literal["plms", "runge_kutta"]
Eps = tuple[Tensor, ...]
History = Eps | None  # of the last steps, newest first; None at the first step

# Weights of Adams-Bashforth for equal strides, by the number of available eps, newest first.
ADAMS_BASHFORTH: tuple[tuple[float, ...], ...] = (
    (1,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def adams_bashforth(eps: Eps) -> Tensor:
    """Combine 1 to 4 eps, newest first. A single eps is returned unchanged."""
    weights = ADAMS_BASHFORTH[len(eps) - 1]
    return sum((w * e for w, e in zip(weights[1:], eps[1:])), start=weights[0] * eps[0])


@dataclass(frozen=True)
class PNDM(TimestepSpaced):
    """Deterministic multistep sampling; `history` holds the last eps, newest first, at most three.

    warmup: "plms" (n + 1 network calls in n steps) or "runge_kutta" (n + 9 calls from n = 4 on, 4n - 3
    below). The last step ends at -1, where the network cannot be evaluated, so it is never a warm-up step; a
    run of one step is a plain DDIM step with one call.
    spacing, steps_offset, set_alpha_to_one: as in `DDIM`. The weights assume equal strides. A spacing that
    rounds its timesteps, or a fractional first step of img2img, reduces the accuracy but not the order.
    """

    warmup: Warmup = "plms"
    spacing: Spacing = "leading"
    steps_offset: int = 1
    set_alpha_to_one: bool = False
    adds_noise = False

    def __post_init__(self) -> None:
        if self.warmup not in ("plms", "runge_kutta"):
            raise ValueError(f"warmup must be 'plms' or 'runge_kutta', not {self.warmup!r}")
        super().__post_init__()

    def step(
        self, predict: Predict, x: Tensor, t: float, t_prev: float, history: History, noise: Tensor | None
    ) -> Step:
        """From x_t (B, C, h, w) to x_{t_prev}; see `Scheduler.step`. Ignores `noise`.

        The `x0` of the returned step corresponds to the combined eps.
        """
        past = history or ()
        eps = predict(x, t).eps
        is_last = t_prev == -1
        if self.warmup == "runge_kutta" and len(past) < 3 and not is_last:
            combined = self._runge_kutta(predict, x, eps, t, t_prev)
        elif not past and not is_last:
            x_next, _ = self._transfer(predict.schedule, x, eps, t, t_prev)
            combined = (eps + predict(x_next, t_prev).eps) / 2
        else:
            combined = adams_bashforth((eps, *past))
        x_prev, x0 = self._transfer(predict.schedule, x, combined, t, t_prev)
        return Step(x_prev, x0, (eps, *past)[:3])

    def _runge_kutta(self, predict: Predict, x: Tensor, eps: Tensor, t: float, t_prev: float) -> Tensor:
        """Equation 13. The half-way timestep is rounded down to a whole one, as the network expects."""
        half = (t + t_prev) // 2

        def eps_at(eps: Tensor, to: float) -> Tensor:
            return predict(self._transfer(predict.schedule, x, eps, t, to)[0], to).eps

        eps_2 = eps_at(eps, half)
        eps_3 = eps_at(eps_2, half)
        eps_4 = eps_at(eps_3, t_prev)
        return (eps + 2 * eps_2 + 2 * eps_3 + eps_4) / 6

    def _transfer(
        self, schedule: NoiseSchedule, x: Tensor, eps: Tensor, t: float, t_prev: float
    ) -> tuple[Tensor, Tensor]:
        """DDIM's update from x_t with the given eps: (x_{t_prev}, x_0)."""
        x0 = schedule.x0_from_eps(x, eps, t)
        return ddim_update(schedule, x0, eps, t, t_prev, set_alpha_to_one=self.set_alpha_to_one), x0
