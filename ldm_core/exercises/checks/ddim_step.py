"""Exercise 3: one step of DDIM (Song et al. 2021, arXiv:2010.02502, equations 12 and 16)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldm_core.exercises.expect import draw, expect_values
from ldm_core.exercises.user_file import UserFile
from ldm_core.noise_schedule import NoiseSchedule, Predict
from ldm_core.schedulers import DDIM, Step, ddim_update
from ldm_core.schedulers.base import require_noise
from ldm_core.testing import check_scheduler

SHAPE = (2, 4, 3, 5)


def check(answer: UserFile) -> Iterator[str]:
    ddim_step = answer.get("ddim_step")
    schedule = NoiseSchedule()
    x, eps, noise = (draw(*SHAPE, seed=seed) for seed in range(3))

    clean = (
        "At t_prev = -1, the clean image, alpha is 1: `schedule.alpha_cumprod(t_prev)` gives it. To Python, "
        "`alphas_cumprod[-1]` is the last entry of the table, the most noise."
    )

    def compare(t: int, t_prev: int, eta: float) -> None:
        x0 = schedule.x0_from_eps(x, eps, t)
        expected = ddim_update(
            schedule, x0, eps, t, t_prev, set_alpha_to_one=True, eta=eta, noise=noise if eta else None
        )
        actual = answer.call(
            ddim_step, schedule, x, eps, t, t_prev, eta, noise, hint=clean if t_prev == -1 else ""
        )
        wide = (x.double(), eps.double(), t, t_prev, eta, noise.double())
        found = lambda: mistakes(Formula(schedule, *wide))  # noqa: E731
        expect_values(f"x at t = {t_prev}", actual, expected, found)

    yield "a step from t = 601 to 401, with eta = 0"
    compare(601, 401, 0.0)
    yield "the last step, from t = 21 to -1, the clean image, with eta = 0"
    compare(21, -1, 0.0)
    yield "a step from t = 601 to 401, with eta = 1"
    compare(601, 401, 1.0)
    yield "a step from t = 601 to 401, with eta = 0.5"
    compare(601, 401, 0.5)
    yield "the last step, with eta = 1: nothing is added to the clean image"
    compare(21, -1, 1.0)
    steps: dict[str, Any] = {"steps": (1, 2, 10, 50), "dtypes": (torch.float32,)}
    yield "the contract of a scheduler (ldm_core.testing.check_scheduler), with eta = 0"
    answer.meets(check_scheduler, AsScheduler(answer, ddim_step, 0.0), stochastic=False, **steps)
    yield "the contract of a scheduler, with eta = 1"
    answer.meets(
        check_scheduler, AsScheduler(answer, ddim_step, 1.0), stochastic=True, converges=False, **steps
    )


@dataclass(frozen=True)
class AsScheduler:
    """The user's function as a scheduler, with the timesteps of `DDIM`."""

    answer: UserFile
    function: Callable[..., Tensor]
    eta: float

    def timesteps(self, schedule: NoiseSchedule, n: int) -> list[tuple[float, float]]:
        return DDIM(spacing="trailing").timesteps(schedule, n)

    def step(
        self, predict: Predict, x: Tensor, t: float, t_prev: float, history: Any, noise: Tensor | None
    ) -> Step:
        now = predict(x, t)
        if self.eta and t_prev != -1:
            noise = require_noise(noise, x)
        noise = torch.zeros_like(x) if noise is None else noise
        x_prev = self.function(predict.schedule, x, now.eps, t, t_prev, self.eta, noise)
        return Step(x_prev, now.x0)


@dataclass(frozen=True)
class Formula:
    """Equation 12, whose parts can be replaced by wrong ones."""

    schedule: NoiseSchedule
    x: Tensor
    eps: Tensor
    t: int
    t_prev: int
    eta: float
    noise: Tensor

    @property
    def alpha(self) -> float:
        return self.schedule.alpha_cumprod(self.t)

    @property
    def prev(self) -> float:
        return self.schedule.alpha_cumprod(self.t_prev)

    @property
    def root(self) -> float:
        """sigma at eta = 1."""
        return math.sqrt(max(0.0, (1 - self.prev) / (1 - self.alpha) * (1 - self.alpha / self.prev)))

    def step(
        self,
        alpha: float | None = None,
        prev: float | None = None,
        *,
        x0: Tensor | None = None,
        sigma: float | None = None,
        direction: float | None = None,
        noise: Tensor | None = None,
    ) -> Tensor:
        alpha = self.alpha if alpha is None else alpha
        prev = self.prev if prev is None else prev
        x0 = (self.x - math.sqrt(1 - alpha) * self.eps) / math.sqrt(alpha) if x0 is None else x0
        sigma = self.eta * self.root if sigma is None else sigma
        direction = math.sqrt(max(0.0, 1 - prev - sigma**2)) if direction is None else direction
        return math.sqrt(prev) * x0 + direction * self.eps + sigma * (self.noise if noise is None else noise)


def mistakes(formula: Formula) -> dict[str, Tensor]:
    found = _of_x0(formula) | _of_direction(formula) | _of_timesteps(formula)
    return found | (_of_noise(formula) if formula.eta else _without_noise(formula))


def _of_x0(formula: Formula) -> dict[str, Tensor]:
    """The mistakes of the predicted x_0."""
    x, eps, step, alpha = formula.x, formula.eps, formula.step, formula.alpha
    a, s = math.sqrt(alpha), math.sqrt(1 - alpha)
    return {
        "The predicted x_0 is not divided by sqrt(alpha_t): x_0 = (x_t - sqrt(1 - alpha_t) eps) / "
        "sqrt(alpha_t).": step(x0=x - s * eps),
        "The factors of x_0 are swapped: x_0 takes off sqrt(alpha_t) eps where sqrt(1 - alpha_t) eps "
        "belongs.": step(x0=(x - a * eps) / a),
        "x_0 is divided by sqrt(1 - alpha_t) where sqrt(alpha_t) belongs.": step(x0=(x - s * eps) / s),
        "The square roots are missing in x_0: it equals (x_t - (1 - alpha_t) eps) / alpha_t.": step(
            x0=(x - (1 - alpha) * eps) / alpha
        ),
        "x_0 has the wrong sign of eps: take the noise off x_t, do not add it.": step(x0=(x + s * eps) / a),
        "x_t stands where the predicted x_0 belongs: sqrt(alpha_prev) x_t + ….": step(x0=x),
    }


def _of_direction(formula: Formula) -> dict[str, Tensor]:
    """The mistakes of the factors of x_0 and eps."""
    step, alpha, prev, sigma = formula.step, formula.alpha, formula.prev, formula.eta * formula.root
    a, s = math.sqrt(alpha), math.sqrt(1 - alpha)
    x0 = (formula.x - s * formula.eps) / a
    return {
        "eps has the factor of t: sqrt(1 - alpha_t) where sqrt(1 - alpha_prev - sigma^2) belongs, so the "
        "noise stays in.": step(direction=s),
        "The square root of the factor of eps is missing: it is 1 - alpha_prev - sigma^2.": step(
            direction=1 - prev - sigma**2
        ),
        "The factors are swapped: sqrt(alpha_prev) stands where sqrt(1 - alpha_prev) belongs, and the other "
        "way round.": math.sqrt(1 - prev) * x0 + math.sqrt(prev) * formula.eps + sigma * formula.noise,
        "The square root of alpha_prev is missing: x_0 has the factor alpha_prev.": step(
            x0=math.sqrt(prev) * x0
        ),
        "The step ends in the predicted x_0: put the noise of t_prev back, sqrt(1 - alpha_prev - sigma^2) "
        "eps.": step(direction=0.0),
    }


def _of_timesteps(formula: Formula) -> dict[str, Tensor]:
    """The mistakes of the alphas that are looked up."""
    schedule, step, t, t_prev = formula.schedule, formula.step, formula.t, formula.t_prev
    alpha, prev = formula.alpha, formula.prev
    later, sooner = schedule.alpha_cumprod(t + 1), schedule.alpha_cumprod(t - 1)
    return {
        "The step does not move: t_prev is not used, and x_t comes back.": step(alpha, alpha, sigma=0.0),
        "t and t_prev are swapped.": step(prev, alpha, sigma=0.0),
        "The timestep is off by one: alpha_t is that of t - 1.": step(sooner),
        "The timestep is off by one: alpha_t is that of t + 1.": step(later),
        "The timesteps are off by one: this is the step from t - 1 to t_prev - 1.": step(
            sooner, schedule.alpha_cumprod(max(t_prev - 1, -1))
        ),
        "The timesteps are off by one: this is the step from t + 1 to t_prev + 1.": step(
            later, schedule.alpha_cumprod(t_prev + 1)
        ),
        "At t_prev = -1 you take the last entry of the table, which is what Python's index -1 means: that is "
        "the most noise. -1 is the clean image, alpha = 1: `schedule.alpha_cumprod(t_prev)` gives it.": step(
            prev=float(schedule.alphas_cumprod[-1])
        ),
        "At t_prev = -1 you end at alphas_cumprod[0], as CompVis does. Here the run ends at the clean image, "
        "alpha = 1: `schedule.alpha_cumprod(t_prev)` gives it.": step(prev=schedule.alpha_cumprod(0)),
    }


def _of_noise(formula: Formula) -> dict[str, Tensor]:
    """The mistakes where noise is added."""
    step, alpha, prev, eta, root = formula.step, formula.alpha, formula.prev, formula.eta, formula.root
    noise, sigma = formula.noise, eta * root
    return {
        "The noise is missing: with eta > 0, add sigma noise.": step(noise=torch.zeros_like(noise)),
        "eta is not used: this is the step with eta = 0.": step(sigma=0.0),
        "eta is not used: this is the step with eta = 1.": step(sigma=root),
        "sigma^2 is missing under the root: eps has the factor sqrt(1 - alpha_prev), and the noise comes on "
        "top, so that x gets too noisy.": step(direction=math.sqrt(1 - prev)),
        "The root has sigma where sigma^2 belongs.": step(direction=math.sqrt(max(0.0, 1 - prev - sigma))),
        "The noise has the factor sigma^2 where sigma belongs.": step(noise=sigma * noise),
        "The noise has the factor eta where sigma belongs.": step(sigma=0.0, direction=0.0)
        + math.sqrt(max(0.0, 1 - prev - sigma**2)) * formula.eps
        + eta * noise,
        "sigma is the variance: the square root of equation 16 is missing.": step(sigma=eta * root**2),
        "sigma lacks its second factor, sqrt(1 - alpha_t / alpha_prev).": step(
            sigma=eta * math.sqrt((1 - prev) / (1 - alpha))
        ),
        "sigma lacks its first factor, sqrt((1 - alpha_prev) / (1 - alpha_t)).": step(
            sigma=eta * math.sqrt(1 - alpha / prev)
        ),
    }


def _without_noise(formula: Formula) -> dict[str, Tensor]:
    """The mistakes where no noise is added."""
    return {
        "Noise is added although eta = 0: sigma must have the factor eta.": formula.step(sigma=formula.root),
        "Noise is added although eta = 0: it must have the factor sigma.": formula.step() + formula.noise,
    }
