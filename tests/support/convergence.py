"""Gaussian data, whose best prediction is known: exact solutions, errors and orders of convergence."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ldm_core.noise_schedule import Denoiser, NoiseSchedule, make_betas
from ldm_core.schedulers import truncate

STEPS = (40, 80, 160, 320)
MU, C = 0.3, 0.5


def gaussian_std(schedule: NoiseSchedule, t: int, c: float = C) -> float:
    a, s = schedule.signal_and_noise(t)
    return math.sqrt(a * a * c * c + s * s)


def gaussian_denoiser(schedule: NoiseSchedule, c: float = C) -> Denoiser:
    """The exact eps for data of mean MU and standard deviation c."""

    def eps(x: Tensor, t: int) -> Tensor:
        a, s = schedule.signal_and_noise(t)
        return s * (x - a * MU) / gaussian_std(schedule, t, c) ** 2

    return Denoiser(eps, schedule)


def exact_flow(schedule: NoiseSchedule, x: Tensor, t: int, to: int) -> Tensor:
    """Where the probability-flow ODE takes x from timestep t."""
    (a, _), (a_to, _) = schedule.signal_and_noise(t), schedule.signal_and_noise(to)
    return a_to * MU + gaussian_std(schedule, to) * (x - a * MU) / gaussian_std(schedule, t)


def smooth_schedule(total: int) -> NoiseSchedule:
    """SD1's betas over `total` steps, after a first step large enough that s_t / a_t is smooth throughout.

    At the clean end of SD1's own schedule s_t grows like sqrt(t), whose derivative is infinite: see
    `test_the_clean_end_of_sd1s_schedule_lowers_every_order`.
    """
    betas = make_betas("scaled_linear", total, 0.00085, 0.012) * 1000 / total
    return NoiseSchedule(betas=torch.cat([torch.tensor([0.1], dtype=torch.float64), betas]))


def sd1_schedule(total: int) -> NoiseSchedule:
    betas = make_betas("scaled_linear", total, 0.00085, 0.012) * 1000 / total
    return NoiseSchedule(betas=torch.cat([betas[:1], betas]))


def linear_sigma_schedule(total: int) -> NoiseSchedule:
    """s_t / a_t linear in t, from 0.5 to 1.5, so that strides are equal in the variable DDIM integrates."""
    alphas_cumprod = 1 / (1 + torch.linspace(0.5, 1.5, total + 1, dtype=torch.float64) ** 2)
    ratios = alphas_cumprod[1:] / alphas_cumprod[:-1]
    return NoiseSchedule(betas=1 - torch.cat([alphas_cumprod[:1], ratios]))


def flow_error(scheduler: Any, schedule: NoiseSchedule, n: int, strides: float | None = None) -> float:
    """Largest error at timestep 0 over the largest value, after n strides from the table's noisy end.

    Fewer strides, not necessarily a whole number, start as an img2img does.
    """
    pairs = scheduler.timesteps(schedule, n + 1)
    assert (pairs[0][0], pairs[-1][0]) == (len(schedule) - 1, 0)
    if strides is not None:
        _, pairs = truncate(pairs, (strides + 1) / (n + 1))
    start = x = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(1, 1, 3, 3)
    history = None
    for t, t_prev in pairs:
        step = scheduler.step(gaussian_denoiser(schedule), x, t, t_prev, history, None)
        x, history = step.x, step.history
    expected = exact_flow(schedule, start, pairs[0][0], 0)
    return float((x - expected).abs().max() / expected.abs().max())


def order(scheduler: Any, schedule: NoiseSchedule, ns: tuple[int, ...]) -> float:
    """The order of convergence over whole runs of n strides."""
    return slope(ns, [flow_error(scheduler, schedule, n) for n in ns])


def slope(ns: tuple[int, ...], errors: list[float]) -> float:
    """The slope of -log error over log n, by least squares."""
    log_n = torch.tensor([math.log(n) for n in ns], dtype=torch.float64)
    log_error = torch.tensor([math.log(error) for error in errors], dtype=torch.float64)
    log_n = log_n - log_n.mean()
    return -float((log_n * log_error).sum() / (log_n * log_n).sum())


def moments(scheduler: Any, n: int, c: float) -> tuple[float, float]:
    """Exact mean and variance of a run's samples: on Gaussian data a step is x_prev = A x + B + S noise."""
    schedule = NoiseSchedule()
    pairs = scheduler.timesteps(schedule, n)
    first = pairs[0][0]
    mean, variance = schedule.signal_and_noise(first)[0] * MU, gaussian_std(schedule, first, c) ** 2
    probe = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    noise = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    for t, t_prev in pairs:
        at_0, at_1, with_noise = scheduler.step(
            gaussian_denoiser(schedule, c), probe, t, t_prev, None, noise
        ).x.tolist()
        mean = (at_1 - at_0) * mean + at_0
        variance = (at_1 - at_0) ** 2 * variance + (with_noise - at_0) ** 2
    return mean, variance
