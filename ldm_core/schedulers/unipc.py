"""UniPC: Zhao et al. 2023, "UniPC: A Unified Predictor-Corrector Framework …" (arXiv:2302.04867).

Let h = lambda_t - lambda_s and B(h) = h ("bh1") or e^h - 1 ("bh2"). With x_0 predicted at s, and x_0_k at
other points with r_k = (lambda_k - lambda_s) / h, a step from s to t is

    x_t = (s_t / s_s) x_s + a_t (1 - exp(-h)) x_0 - a_t B(-h) sum_k w_k (x_0_k - x_0) / r_k

where the w_k solve  sum_k r_k^(i-1) w_k = i! (-h) phi_(i+1)(-h) / B(-h)  for i = 1, 2, … (theorem 3.1).

    UniP (predictor)   the points are the earlier steps
    UniC (corrector)   one additional point: t itself, r = 1, with the x_0 that the network predicts there

The corrector needs no additional network call: a step first corrects the x that it is given, using the
prediction at x, and then uses the same prediction for the predictor. Order p predicts to order p and corrects
to order p + 1.

The correction is computed as a difference and added to x. The terms common to both updates cancel, and
changes that inpainting or the caller made to x between the steps are preserved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ldm_core.noise_schedule import Predict
from ldm_core.schedulers.base import Step
from ldm_core.schedulers.level import Level, along_lambda, level_at, signal_weight
from ldm_core.schedulers.sigma_spacing import SolverSpaced, SolverSpacing

SolverType = Literal["bh1", "bh2"]
# (t, x_0) of the last steps, newest first; None at the first step.
History = tuple[tuple[float, Tensor], ...] | None
Known = Sequence[tuple[Level, Tensor]]


def phi(k: int, z: float) -> float:
    """phi_k(z) = sum over j of z^j / (j + k)!, for k >= 1."""
    if abs(z) < 1:  # the recursion below loses precision for small z
        return sum(z**j / math.factorial(j + k) for j in range(18))
    value = math.expm1(z) / z
    for i in range(1, k):
        value = (value - 1 / math.factorial(i)) / z
    return value


def weights(ratios: Sequence[float], h: float, solver_type: SolverType) -> list[float]:
    """The w_k of theorem 3.1. A single weight is 1/2 for any h, which preserves the order."""
    if len(ratios) < 2:
        return [0.5] * len(ratios)
    orders = range(1, len(ratios) + 1)
    scale = phi(1, -h) if solver_type == "bh2" else 1.0
    powers = torch.tensor([[r ** (i - 1) for r in ratios] for i in orders], dtype=torch.float64)
    right = torch.tensor([math.factorial(i) * phi(i + 1, -h) / scale for i in orders], dtype=torch.float64)
    return torch.linalg.solve(powers, right).tolist()


@dataclass(frozen=True)
class UniPC(SolverSpaced):
    """Deterministic, one network call per step; `history` holds the last `order` (t, x_0), newest first.

    order: of the predictor, 1 to 3. solver_type: the choice of B(h). lower_order_final: make the last step
    first-order; a last step to the clean image always is. spacing, steps_offset, skip_last, set_alpha_to_one:
    as in `DPMSolverMultistep`.

    diffusers: `UniPCMultistepScheduler` with predict_x0. Its lower_order_final also reduces order 3 to 2 in
    the second-to-last step, which a stateless step cannot identify; its corrector replaces x.
    """

    order: Literal[1, 2, 3] = 2
    solver_type: SolverType = "bh2"
    spacing: SolverSpacing = "trailing"
    steps_offset: int = 1
    skip_last: bool = False
    set_alpha_to_one: bool = True
    lower_order_final: bool = True
    adds_noise = False

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise ValueError(f"order must be 1, 2 or 3, not {self.order!r}")
        if self.solver_type not in ("bh1", "bh2"):
            raise ValueError(f"solver_type must be 'bh1' or 'bh2', not {self.solver_type!r}")
        super().__post_init__()

    def step(
        self, predict: Predict, x: Tensor, t: float, t_prev: float, history: History, noise: Tensor | None
    ) -> Step:
        """From x_t (B, C, h, w) to x_{t_prev}; see `Scheduler.step`. Ignores `noise`."""
        schedule = predict.schedule
        start, end = level_at(schedule, t), level_at(schedule, t_prev, self.set_alpha_to_one)
        past = [(level_at(schedule, past_t), past_x0) for past_t, past_x0 in history or () if past_t != t]
        x0 = predict(x, t).x0
        if past:
            x = x + self._correction(x0, past, start)
        is_plain = end.s in (0, start.s) or (t_prev == -1 and self.lower_order_final)
        known = [(start, x0), *past][: 1 if is_plain else self.order]
        x_prev = along_lambda(x, x0, start, end)
        if len(known) > 1:
            x_prev = x_prev + self._prediction(known, end)
        # lambda is not finite in pure noise, so nothing can be extrapolated from there.
        kept = [(level.t, past_x0) for level, past_x0 in past]
        remembered = ((t, x0), *kept)[: self.order] if start.a > 0 else ()
        return Step(x_prev, x0, remembered)

    def _prediction(self, known: Known, end: Level) -> Tensor:
        """The higher-order terms of UniP for a step from the newest known level to `end`."""
        h, scale, ratios, slopes = self._stride(known, end)
        return combined([scale * w for w in weights(ratios, h, self.solver_type)], slopes)

    def _correction(self, x0: Tensor, known: Known, here: Level) -> Tensor:
        """The difference between UniC and UniP for x at `here`, given the x_0 predicted there."""
        h, scale, ratios, slopes = self._stride(known, here)
        before = [*weights(ratios, h, self.solver_type), 0.0]
        after = weights([*ratios, 1.0], h, self.solver_type)
        return combined([scale * (c - p) for c, p in zip(after, before)], [*slopes, x0 - known[0][1]])

    def _stride(self, known: Known, end: Level) -> tuple[float, float, list[float], list[Tensor]]:
        """h, the factor -a_t B(-h), and the r_k and (x_0_k - x_0) / r_k of all levels except the newest."""
        (start, x0), *earlier = known
        h = end.log_snr - start.log_snr
        scale = signal_weight(start, end) if self.solver_type == "bh2" else end.a * h
        ratios = [(level.log_snr - start.log_snr) / h for level, _ in earlier]
        return h, scale, ratios, [(x0_k - x0) / r for (_, x0_k), r in zip(earlier, ratios)]


def combined(factors: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    """The sum of factor * tensor over at least one pair."""
    return sum((f * x for f, x in zip(factors[1:], tensors[1:])), start=factors[0] * tensors[0])
