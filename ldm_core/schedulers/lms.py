"""LMS: a linear multistep method, Adams-Bashforth for unequal strides, as k-diffusion's `sample_lms`.

In x / a over sigma = s / a (Karras et al. 2022, arXiv:2206.00364) the ODE is d(x / a) / d sigma = eps. A step
integrates the polynomial in sigma through the last few eps, so each of them has a stride dt_k of its own:

    x_prev / a_prev = x / a + sum_k d_k dt_k

Liu et al. 2022 (arXiv:2202.09778, equation 12) use the weights of equal strides instead (see `pndm`), which
agree with these where the strides of sigma are equal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ldm_core.noise_schedule import Predict
from ldm_core.schedulers.base import Step
from ldm_core.schedulers.level import level_at
from ldm_core.schedulers.sigma_spacing import SolverSpaced, SolverSpacing

# (t, eps) of the last steps, newest first; None at the first step.
History = tuple[tuple[float, Tensor], ...] | None


def lagrange_weights(nodes: Sequence[float], start: float, end: float) -> list[float]:
    """The integrals from start to end of the Lagrange polynomials, each 1 at one node and 0 at the others.

    Two-point Gauss-Legendre quadrature, which is exact for up to four nodes.
    """
    middle, half = (start + end) / 2, (end - start) / 2
    points = (middle - half / math.sqrt(3), middle + half / math.sqrt(3))

    def basis(k: int, sigma: float) -> float:
        return math.prod((sigma - other) / (nodes[k] - other) for i, other in enumerate(nodes) if i != k)

    return [half * sum(basis(k, point) for point in points) for k in range(len(nodes))]


@dataclass(frozen=True)
class LMS(SolverSpaced):
    """Deterministic, one network call per step; `history` holds the last order - 1 (t, eps), newest first.

    order: 1 (Euler's method) to 4; the first steps use the history there is. spacing, steps_offset,
    set_alpha_to_one: as in `Euler`. diffusers: `LMSDiscreteScheduler`.
    """

    order: int = 4
    spacing: SolverSpacing = "trailing"
    steps_offset: int = 1
    set_alpha_to_one: bool = True
    adds_noise = False

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3, 4):
            raise ValueError(f"order must be 1, 2, 3 or 4, not {self.order!r}")
        super().__post_init__()

    def step(
        self, predict: Predict, x: Tensor, t: float, t_prev: float, history: History, noise: Tensor | None
    ) -> Step:
        """From x_t (B, C, h, w) to x_{t_prev}; see `Scheduler.step`. Ignores `noise`.

        Raises ValueError in pure noise, where sigma is infinite.
        """
        start = level_at(predict.schedule, t)
        end = level_at(predict.schedule, t_prev, self.set_alpha_to_one)
        past = [(past_t, eps) for past_t, eps in history or () if past_t != t]
        nodes = [start.sigma, *(level_at(predict.schedule, past_t).sigma for past_t, _ in past)]
        dt = lagrange_weights(nodes, start.sigma, end.sigma)
        now = predict(x, t)
        d = [now.eps, *(eps for _, eps in past)]
        x_prev = end.a * (x / start.a + sum(d_k * dt_k for d_k, dt_k in zip(d, dt)))
        return Step(x_prev, now.x0, ((t, now.eps), *past)[: self.order - 1])
