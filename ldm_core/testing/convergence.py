"""The convergence of schedulers with the number of steps, on Gaussian data with exact predictions.

A deterministic scheduler solves the probability-flow ODE, so its endpoint must approach the exact solution.
The samples of a stochastic scheduler must approach the data's mean and variance.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from ldm_core.noise_schedule import NoiseSchedule
from ldm_core.schedulers.base import Scheduler
from ldm_core.testing.contract import Contract
from ldm_core.testing.gaussian import GaussianData, independent_noise

# First-order methods of this package reduce their error at least 24-fold from 10 to 500 steps of SD1's
# schedule, in every spacing; with a constant error of 2 %, the factor is 10.
FALL = 12
NEGLIGIBLE = 1e-3  # an error that need not fall further; the convention of the last step alone makes 1.5e-3

SAMPLES = 4096
MEAN_ERROR = 0.02  # in standard deviations of the data; `independent_noise` leaves no statistical error
# DDPM's smaller variance is 4 % off at 500 steps and 19 % at 50.
VARIANCE_ERROR = 0.06
X0_ERROR = 0.1  # in standard deviations of the data, where most of x_t is signal


def check_convergence(
    contract: Contract, scheduler: Scheduler, schedule: NoiseSchedule, *, stochastic: bool
) -> None:
    """Check the limit of many steps and the meaning of `x0`."""
    total = len(schedule)
    counts = sorted({max(1, total // 100), max(1, total // 14), max(1, total // 2)})
    if stochastic:
        _check_moments(contract, scheduler, GaussianData(schedule), counts)
    else:
        _check_flow(contract, scheduler, GaussianData(schedule), counts)
    _check_x0(contract, scheduler, GaussianData(schedule), counts[-1])


def _check_flow(contract: Contract, scheduler: Scheduler, data: GaussianData, counts: list[int]) -> None:
    with contract.clause(
        "convergence",
        "a deterministic scheduler solves the probability-flow ODE; wrong coefficients give another "
        "distribution of images (a scheduler that ignores its noise counts as deterministic)",
    ) as clause:
        errors = []
        for n in counts:
            pairs = scheduler.timesteps(data.schedule, n)
            start = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(1, 1, 3, 3)
            end = _run(scheduler, data, start, pairs)
            # Three conventions of the last step: to the clean image, to alphas_cumprod[0] as in CompVis, or
            # to the prediction at timestep 0 in spacings that reach it.
            clean, noisy = (data.flow(start, pairs[0][0], to) for to in (-1, 0))
            ends = (clean, noisy, data(noisy, 0).x0)
            errors.append(min(float((end - e).abs().max()) for e in ends) / data.deviation)
        got = ", ".join(f"{error:.2g} at n={n}" for n, error in zip(counts, errors))
        clause.expect(
            errors[-1] <= max(errors[0] / FALL, NEGLIGIBLE),
            f"the error on Gaussian data (in standard deviations) to fall {FALL}-fold from n={counts[0]} to "
            f"n={counts[-1]}, or to {NEGLIGIBLE}",
            got,
        )
        falling = all(b <= max(a, NEGLIGIBLE) for a, b in itertools.pairwise(errors))
        clause.expect(falling, "the error on Gaussian data to fall whenever n grows", got)


def _check_moments(contract: Contract, scheduler: Scheduler, data: GaussianData, counts: list[int]) -> None:
    with contract.clause(
        "convergence",
        "samples must have the data's mean and variance; too little noise gives flat images",
    ) as clause:
        means, variances = [], []
        for n in counts:
            pairs = scheduler.timesteps(data.schedule, n)
            generator = torch.Generator().manual_seed(0)
            end = _run(scheduler, data, data.start(pairs[0][0], SAMPLES), pairs, generator)
            means.append(float(end.mean() - data.mean) / data.deviation)
            variances.append(float(end.var()) / data.deviation**2 - 1)
        n = counts[-1]
        clause.expect(
            abs(means[-1]) <= MEAN_ERROR,
            f"the mean of samples on Gaussian data within {MEAN_ERROR} standard deviations at n={n}",
            f"{means[-1]:+.3g}",
        )
        clause.expect(
            abs(variances[-1]) <= VARIANCE_ERROR,
            f"the variance of samples on Gaussian data within {VARIANCE_ERROR:.0%} at n={n}",
            ", ".join(f"{error:+.1%} at n={n}" for n, error in zip(counts, variances)),
        )


def _check_x0(contract: Contract, scheduler: Scheduler, data: GaussianData, n: int) -> None:
    with contract.clause("x0", "previews show Step.x0 as the predicted image") as clause:
        pairs = scheduler.timesteps(data.schedule, n)
        x = data.start(pairs[0][0], SAMPLES)
        generator = torch.Generator().manual_seed(0)
        worst, where, history = 0.0, pairs[-1], None
        for t, t_prev in pairs:
            noise = independent_noise(x, generator)
            step = scheduler.step(data, x, t, t_prev, history, noise)
            a, s = data.schedule.signal_and_noise(t)
            error = float((step.x0 - data(x, t).x0).abs().max()) / data.deviation
            if a >= s and error > worst:
                worst, where = error, (t, t_prev)
            x, history = step.x, step.history
        clause.expect(
            worst <= X0_ERROR,
            f"Step.x0 to be the exact prediction within {X0_ERROR} standard deviations, at n={n}",
            f"{worst:.3g} at step{where}",
        )


def _run(
    scheduler: Scheduler,
    data: GaussianData,
    x: Tensor,
    pairs: list[tuple[float, float]],
    generator: torch.Generator | None = None,
) -> Tensor:
    history = None
    for t, t_prev in pairs:
        noise = torch.zeros_like(x) if generator is None else independent_noise(x, generator)
        step = scheduler.step(data, x, t, t_prev, history, noise)
        x, history = step.x, step.history
    return x
