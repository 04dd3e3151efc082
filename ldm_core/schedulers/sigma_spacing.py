"""Timesteps chosen by noise level: n levels sigma = s_t / a_t, from the table's noisiest to its cleanest.

    karras          sigma^(1/7) falls linearly          Karras et al. 2022 (arXiv:2206.00364), equation 5
    exponential     log sigma falls linearly            k-diffusion's `get_sigmas_exponential`
    uniform_lambda  lambda = -log sigma rises linearly  Lu et al. 2022a (arXiv:2206.00927)

The last two are the same spacing under two names, as in diffusers. The levels lie between the table's
entries, so these timesteps are floats (`NoiseSchedule.timestep`), and the network is evaluated at the exact
timestep of the level. diffusers uses the exact sigma too, but some of its classes round or truncate the
timestep that the network gets, which then indicates slightly more or less noise than x contains.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

from ldm_core.noise_schedule import NoiseSchedule
from ldm_core.schedulers.spacing import Pairs, Spacing, chained, check_spacing, spaced_pairs, whole_count

SigmaSpacing = Literal["karras", "exponential", "uniform_lambda"]
SolverSpacing = Literal[
    "leading", "trailing", "linspace", "compvis", "karras", "exponential", "uniform_lambda"
]
RHO = 7.0


def karras_sigmas(low: float, high: float, n: int) -> list[float]:
    """n noise levels from high to low; n = 1 gives [high]."""
    start, end = high ** (1 / RHO), low ** (1 / RHO)
    return [(start + k / max(n - 1, 1) * (end - start)) ** RHO for k in range(n)]


def exponential_sigmas(low: float, high: float, n: int) -> list[float]:
    """n noise levels from high to low, each the same factor below the last; n = 1 gives [high]."""
    start, end = math.log(high), math.log(low)
    return [math.exp(start + k / max(n - 1, 1) * (end - start)) for k in range(n)]


class SolverSpaced:
    """Base of the schedulers whose field `spacing` may also name a spacing by sigma; see `TimestepSpaced`."""

    spacing: SolverSpacing
    steps_offset: int
    skip_last: bool = False

    def __post_init__(self) -> None:
        check_spacing(self.spacing, self.steps_offset, get_args(SolverSpacing))

    def timesteps(self, schedule: NoiseSchedule, n: int) -> Pairs:
        """The n pairs (t, t_prev), noisiest first. Raises ValueError for n outside 1..len(schedule)."""
        return solver_pairs(schedule, n, self.spacing, self.steps_offset, skip_last=self.skip_last)


def solver_pairs(
    schedule: NoiseSchedule, n: int, spacing: SolverSpacing, offset: int = 0, *, skip_last: bool = False
) -> Pairs:
    """The pairs (t, t_prev) of a whole run in any spacing, noisiest first; the last t_prev is -1.

    offset: for the "leading" spacing. skip_last: choose n + 1 whole timesteps and omit the cleanest, so that
    the last step is as long as the others; spacings by sigma ignore it. Raises ValueError for n outside 1..T
    (with skip_last, 1..T-1), and for a spacing by sigma of a table that ends in pure noise.
    """
    total = len(schedule)
    if spacing in get_args(SigmaSpacing):
        n = whole_count(total, n)
        first, last = float(schedule.log_sigmas[0]), float(schedule.log_sigmas[-1])
        if math.isinf(last):
            raise ValueError(
                f"the {spacing!r} spacing needs noise levels that are finite, but alphas_cumprod is 0 at "
                f"timestep {total - 1}; choose 'trailing' or another spacing by timesteps"
            )
        make = karras_sigmas if spacing == "karras" else exponential_sigmas
        inner = make(math.exp(first), math.exp(last), n)[1:-1]
        levels = [float(total - 1), *map(schedule.timestep, inner), 0.0][:n]
        return chained(levels[::-1])
    by_timestep: Spacing = spacing  # type: ignore[assignment]
    if not skip_last:
        return spaced_pairs(total, n, by_timestep, offset)
    n = whole_count(total - 1, n)
    return chained([t for t, _ in spaced_pairs(total, n + 1, by_timestep, offset)][-2::-1])
