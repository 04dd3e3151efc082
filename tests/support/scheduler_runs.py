"""What the tests of schedulers share: a network that is a formula, and runs of ours and of the reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ldm_core.noise_schedule import Denoiser, NoiseSchedule
from ldm_core.schedulers import Scheduler, Step

SCHEDULE = NoiseSchedule()


SHAPE = (2, 4, 8, 8)


SD1_BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


PREDICTION_TYPE = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def network(x: Tensor, t: int) -> Tensor:
    """A fixed network, shape to shape: nonlinear in x and in t, mixes channels and pixels of an image."""
    mixed = 0.9 * x - 0.7 * x.roll(1, dims=1) + 0.4 * x.roll(1, dims=3)
    return torch.tanh(mixed + math.sin(t / 150)) + x / 2


def denoiser(prediction: str = "eps", calls: list[int] | None = None) -> Denoiser:
    def function(x: Tensor, t: int) -> Tensor:
        if calls is not None:
            calls.append(t)
        return network(x, t)

    return Denoiser(function, SCHEDULE, prediction)  # type: ignore[arg-type]


def run(
    scheduler: Scheduler, predict: Denoiser, x: Tensor, pairs: Sequence[tuple[int, int]], seed: int = 100
) -> list[Step]:
    """Every step of a trajectory; step i is given the noise drawn with seed + i."""
    steps: list[Step] = []
    history = None
    for i, (t, t_prev) in enumerate(pairs):
        noise = draw(*x.shape, seed=seed + i, dtype=x.dtype)
        steps.append(scheduler.step(predict, x, t, t_prev, history, noise))
        x, history = steps[-1].x, steps[-1].history
    return steps


def error(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference over the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def with_our_table(theirs: Any, set_alpha_to_one: bool = False) -> Any:
    """diffusers' scheduler, computing in float64 throughout."""
    theirs.alphas_cumprod = SCHEDULE.alphas_cumprod
    theirs.final_alpha_cumprod = torch.ones((), dtype=torch.float64)
    if not set_alpha_to_one:
        theirs.final_alpha_cumprod = SCHEDULE.alphas_cumprod[0]
    return theirs


def with_tolerances(exact: Any, theirs: Any, prediction: str = "eps") -> list[tuple[Any, torch.dtype, float]]:
    """diffusers' scheduler with our table and with its own: (scheduler, the latents' dtype, tolerance).

    Of x_0, eps is (x - a x_0) / s: what rounding does to diffusers' a and s is divided by s, 0.03 at t = 0.
    """
    own = 2e-5 if prediction == "x0" else 5e-6
    return [(exact, torch.float64, 1e-9), (exact, torch.float32, 1e-6), (theirs, torch.float32, own)]


def sigma(t: float) -> float:
    a, s = SCHEDULE.signal_and_noise(t)
    return s / a
