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
        found = lambda: mistakes(schedule, x, eps, t, t_prev, eta, noise)  # noqa: E731
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


def mistakes(
    schedule: NoiseSchedule, x: Tensor, eps: Tensor, t: int, t_prev: int, eta: float, noise: Tensor
) -> dict[str, Tensor]:
    alpha, prev = schedule.alpha_cumprod(t), schedule.alpha_cumprod(t_prev)
    x, eps, noise = x.double(), eps.double(), noise.double()
    root = math.sqrt(max(0.0, (1 - prev) / (1 - alpha) * (1 - alpha / prev)))

    def step(
        alpha: float = alpha,
        prev: float = prev,
        *,
        x0: Tensor | None = None,
        sigma: float | None = None,
        direction: float | None = None,
        z: Tensor = noise,
    ) -> Tensor:
        x0 = (x - math.sqrt(1 - alpha) * eps) / math.sqrt(alpha) if x0 is None else x0
        sigma = eta * root if sigma is None else sigma
        if direction is None:
            direction = math.sqrt(max(0.0, 1 - prev - sigma**2))
        return math.sqrt(prev) * x0 + direction * eps + sigma * z

    def moved(by: int) -> Tensor:
        """The step between other timesteps, with sigma of the right ones."""
        return step(schedule.alpha_cumprod(max(t + by, 0)), schedule.alpha_cumprod(max(t_prev + by, -1)))

    a, s = math.sqrt(alpha), math.sqrt(1 - alpha)
    found = {
        "The predicted x_0 is not divided by sqrt(alpha_t): x_0 = (x_t - sqrt(1 - alpha_t) eps) / "
        "sqrt(alpha_t).": step(x0=x - s * eps),
        "The factors of x_0 are swapped: x_0 takes off sqrt(alpha_t) eps where sqrt(1 - alpha_t) eps "
        "belongs.": step(x0=(x - a * eps) / a),
        "x_0 is divided by sqrt(1 - alpha_t) where sqrt(alpha_t) belongs.": step(x0=(x - s * eps) / s),
        "The square roots are missing in x_0: it equals (x_t - (1 - alpha_t) eps) / alpha_t.": step(
            x0=(x - (1 - alpha) * eps) / alpha
        ),
        "x_0 has the wrong sign of eps: take the noise off x_t, do not add it.": step(x0=(x + s * eps) / a),
        "x_t stands where the predicted x_0 belongs: sqrt(alpha_prev) x_t + … .": step(x0=x),
        "eps has the factor of t: sqrt(1 - alpha_t) where sqrt(1 - alpha_prev - sigma^2) belongs, so the "
        "noise stays in.": step(direction=s),
        "The square root of the factor of eps is missing: it is 1 - alpha_prev - sigma^2.": step(
            direction=1 - prev - (eta * root) ** 2
        ),
        "The factors are swapped: sqrt(alpha_prev) stands where sqrt(1 - alpha_prev) belongs, and the other "
        "way round.": math.sqrt(1 - prev) * (x - s * eps) / a + math.sqrt(prev) * eps + eta * root * noise,
        "The square root of alpha_prev is missing: x_0 has the factor alpha_prev.": step(
            x0=(x - s * eps) / a * math.sqrt(prev)
        ),
        "The step ends in the predicted x_0: put the noise of t_prev back, sqrt(1 - alpha_prev - sigma^2) "
        "eps.": step(direction=0.0),
        "The step does not move: t_prev is not used, and x_t comes back.": step(alpha, alpha, sigma=0.0),
        "t and t_prev are swapped.": step(prev, alpha) if t_prev != -1 else step(prev, alpha, sigma=0.0),
        "The timestep is off by one: alpha_t is that of t - 1.": step(schedule.alpha_cumprod(max(t - 1, 0))),
        "The timestep is off by one: alpha_t is that of t + 1.": step(schedule.alpha_cumprod(t + 1)),
        "The timesteps are off by one: this is the step from t - 1 to t_prev - 1.": moved(-1),
        "The timesteps are off by one: this is the step from t + 1 to t_prev + 1.": moved(1),
    }
    if t_prev == -1:
        last, first = float(schedule.alphas_cumprod[-1]), schedule.alpha_cumprod(0)
        found |= {
            "At t_prev = -1 you take the last entry of the table, which is what Python's index -1 means: "
            "that is the most noise. -1 is the clean image, alpha = 1; `schedule.alpha_cumprod(t_prev)` "
            "knows it.": step(prev=last),
            "At t_prev = -1 you end at alphas_cumprod[0], as CompVis does. Here the run ends at the clean "
            "image, alpha = 1; `schedule.alpha_cumprod(t_prev)` gives it.": step(prev=first),
        }
    return found | (_of_noise(step, prev, alpha, eta, root, noise) if eta else _without(step, root, noise))


def _of_noise(
    step: Callable[..., Tensor], prev: float, alpha: float, eta: float, root: float, noise: Tensor
) -> dict[str, Tensor]:
    """The mistakes where noise is added."""
    sigma = eta * root
    return {
        "The noise is missing: with eta > 0, add sigma noise.": step(z=torch.zeros_like(noise)),
        "eta is not used: this is the step with eta = 0.": step(sigma=0.0),
        "eta is not used: this is the step with eta = 1.": step(sigma=root),
        "sigma^2 is missing under the root: eps has the factor sqrt(1 - alpha_prev), and the noise comes on "
        "top, so that x gets too noisy.": step(direction=math.sqrt(1 - prev)),
        "The root has sigma where sigma^2 belongs.": step(direction=math.sqrt(max(0.0, 1 - prev - sigma))),
        "The noise has the factor sigma^2 where sigma belongs.": step(z=sigma * noise),
        "The noise has the factor eta where sigma belongs.": step(z=eta / max(sigma, 1e-30) * noise),
        "sigma is the variance: the square root of equation 16 is missing.": step(sigma=eta * root**2),
        "sigma lacks its second factor, sqrt(1 - alpha_t / alpha_prev).": step(
            sigma=eta * math.sqrt((1 - prev) / (1 - alpha))
        ),
        "sigma lacks its first factor, sqrt((1 - alpha_prev) / (1 - alpha_t)).": step(
            sigma=eta * math.sqrt(1 - alpha / prev)
        ),
    }


def _without(step: Callable[..., Tensor], root: float, noise: Tensor) -> dict[str, Tensor]:
    """The mistakes where none is added."""
    return {
        "Noise is added although eta = 0: sigma must have the factor eta.": step(sigma=root),
        "Noise is added although eta = 0: it must have the factor sigma.": step() + noise,
    }
