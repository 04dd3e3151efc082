"""Which of the T training timesteps a sampler visits, and where img2img enters that list.

There are four published ways to choose n of T timesteps, which give different images (docs/schedulers.md):

    leading    (0, 1, .., n-1) * (T // n) + offset     diffusers' default; what CompVis intends
    trailing   round(T - (0, 1, .., n-1) * T / n) - 1   begins at T - 1, where training ends
    linspace   round(linspace(0, T - 1, n))             begins at T - 1 and ends at 0
    compvis    range(0, T, T // n) + 1                  `make_ddim_timesteps`, which may not give n timesteps

Source of the names: Lin et al. 2024, "Common Diffusion Noise Schedules and Sample Steps are Flawed"
(arXiv:2305.08891), table 2. Timesteps are indices into the tables, 0..T-1; -1 denotes the clean image.
`sigma_spacing` implements the spacings by noise level, whose timesteps lie between the table's entries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from numbers import Integral
from typing import Literal, get_args

from ldm_core.noise_schedule import NoiseSchedule

Spacing = Literal["leading", "trailing", "linspace", "compvis"]
Pairs = list[tuple[float, float]]


def leading(total: int, n: int, offset: int = 0) -> list[int]:
    """The first n multiples of total // n, plus `offset`, in rising order.

    The offset is reduced if the last timestep would lie outside the table; with offset 1 only for n = total.
    The last multiple may be far from the end of the table: for total 1000 and n 501 it is 500.
    """
    n = whole_count(total, n)
    stride = total // n
    offset = min(int(offset), total - 1 - (n - 1) * stride)
    return [k * stride + offset for k in range(n)]


def trailing(total: int, n: int) -> list[int]:
    """n timesteps counted back from the end of the table, rounded half to even, in rising order."""
    n = whole_count(total, n)
    stride = total - (total - total / n)  # rounded as by numpy.arange, which decides diffusers' ties
    return [round(total - k * stride) - 1 for k in reversed(range(n))]


def linspace(total: int, n: int) -> list[int]:
    """n timesteps from 0 to total - 1 inclusive, rounded half to even, in rising order. n = 1 gives [0]."""
    n = whole_count(total, n)
    stride = (total - 1) / max(n - 1, 1)
    return [round(k * stride) for k in range(n)]


def compvis(total: int, n: int) -> list[int]:
    """CompVis's spacing: every (total // n)-th timestep of the table, plus one, in rising order.

    Returns more than n timesteps if n does not divide total (31 for n = 30 of 1000). Raises ValueError if the
    last timestep lies outside the table; the original raises an IndexError.
    """
    n = whole_count(total, n)
    levels = [t + 1 for t in range(0, total, total // n)]
    if levels[-1] >= total:
        raise ValueError(
            f"the 'compvis' spacing for n={n} reaches timestep {levels[-1]}, past the table's last, "
            f"{total - 1}; choose another n, or spacing='leading'"
        )
    return levels


def spaced_pairs(total: int, n: int, spacing: Spacing, offset: int = 0) -> Pairs:
    """The pairs (t, t_prev) of a whole sampling run, noisiest first; the last t_prev is -1.

    total: length of the noise schedule. n: number of sampling steps, 1..total. offset: added to every
    timestep of the "leading" spacing, and ignored by the others. Raises ValueError for n outside its range.
    """
    check_spacing(spacing, offset)
    if spacing == "leading":
        levels = leading(total, n, offset)
    else:
        levels = {"trailing": trailing, "linspace": linspace, "compvis": compvis}[spacing](total, n)
    return chained(levels)


class TimestepSpaced:
    """Base of the schedulers whose fields `spacing` and `steps_offset` name a spacing of whole timesteps.

    A subclass is a frozen dataclass that declares both fields, in the order and with the defaults of its own.
    """

    spacing: Spacing
    steps_offset: int

    def __post_init__(self) -> None:
        check_spacing(self.spacing, self.steps_offset)

    def timesteps(self, schedule: NoiseSchedule, n: int) -> Pairs:
        """The n pairs (t, t_prev), noisiest first. Raises ValueError for n outside 1..len(schedule)."""
        return spaced_pairs(len(schedule), n, self.spacing, self.steps_offset)


def chained(rising: Sequence[float]) -> Pairs:
    """The pairs (t, t_prev) of a run from rising timesteps: noisiest first, ending at -1."""
    return [(t, t_prev) for t_prev, t in zip([-1, *rising[:-1]], rising)][::-1]


def check_spacing(spacing: str, offset: int, known: Sequence[str] = get_args(Spacing)) -> None:
    """Raise ValueError for an unknown spacing or an invalid offset; schedulers call this when constructed."""
    if spacing not in known:
        raise ValueError(f"spacing must be one of {', '.join(known)}, not {spacing!r}")
    if not isinstance(offset, Integral) or isinstance(offset, bool) or offset < 0:
        raise ValueError(f"steps_offset must be a whole number, 0 or more, not {offset!r}")


def whole_count(total: int, n: int) -> int:
    """n as an int. Raises ValueError unless it is an int (or a NumPy integer) in 1..total."""
    if not isinstance(n, Integral) or isinstance(n, bool) or not 1 <= n <= total:
        raise ValueError(f"the number of steps must be a whole number in 1..{total}, not {n!r}")
    return int(n)  # a numpy integer would make numpy integers of all timesteps


def truncate(pairs: Pairs, strength: float) -> tuple[float, Pairs]:
    """Where img2img starts: (t_start, the pairs to run from there).

    pairs: a scheduler's whole run, n pairs. strength: the fraction of the run to redo, in (0, 1]; 1 returns
    the pairs as they are. Noise the image to t_start with `NoiseSchedule.add_noise`, then step through the
    returned pairs.

    Call the levels L_n (the first t) down to L_1 (the last t). If strength * n is a whole number k, the run
    starts at L_k. Otherwise it starts between two levels, at the timestep linearly interpolated from L_k to
    L_{k+1} (below L_1: from the end, -1), and its first step goes down to L_k. A larger strength never starts
    lower, and two strengths start alike only if they round to the same training timestep. Between levels that
    are not whole timesteps, nothing is rounded. At least one step is run.

    Raises ValueError for strength outside (0, 1], for an empty list of pairs, and for strength below 1 where
    the pairs do not fall (inversion, restart sampling).
    """
    _check_truncation(pairs, strength)
    if strength == 1:
        return pairs[0][0], list(pairs)
    levels = [-1, *(t for t, _ in reversed(pairs))]
    u = float(strength) * len(pairs)
    if math.isclose(u, round(u), rel_tol=1e-9):  # 0.29 * 100 is 28.999999999999996, and 29 is meant
        u = round(u)
    k = math.floor(u)
    low, high = levels[k], levels[min(k + 1, len(pairs))]
    t_start: float = low if u == k else low + (u - k) * (high - low)
    if isinstance(low, int) and isinstance(high, int):
        t_start = math.floor(t_start + 0.5)
    t_start = max(0, t_start)
    below = [pair for pair in pairs if pair[0] <= t_start]
    if below and below[0][0] == t_start:
        return t_start, below
    return t_start, [(t_start, below[0][0] if below else -1), *below]


def truncate_compvis(pairs: Pairs, strength: float, n: int | None = None) -> tuple[float, Pairs]:
    """Where CompVis's `scripts/img2img.py` starts: (t_noise, the pairs to run), including its mismatch.

    With k = int(strength * n) it noises the image to L_{k+1} (`stochastic_encode` at index k, counted from 0)
    but denoises from L_k (`decode` of the first k), one level lower; strength * n < 1 runs no step.
    n: the requested number of steps, if the "compvis" spacing gave more; by default len(pairs).

    Raises ValueError as `truncate` does, and if there is no L_{k+1}: at strength 1, where the original raises
    an index error.
    """
    _check_truncation(pairs, strength)
    k = int(float(strength) * (len(pairs) if n is None else n))
    if k >= len(pairs):
        raise ValueError(
            f"CompVis's img2img has no start for strength {strength} of {len(pairs)} steps: it noises to one "
            "level above the first that it runs, and there is none; use less strength, or `truncate`"
        )
    rising = pairs[::-1]
    return rising[k][0], rising[:k][::-1]


def _check_truncation(pairs: Pairs, strength: float) -> None:
    if not 0 < strength <= 1:
        raise ValueError(f"strength must be in (0, 1], not {strength!r}")
    if not pairs:
        raise ValueError("there are no timesteps to truncate: pairs is empty")
    visited = [t for pair in pairs for t in pair]
    rise = next((step for step in pairwise(visited) if step[0] < step[1]), None)
    if rise is not None and strength < 1:
        raise ValueError(
            f"strength below 1 needs timesteps that fall; this list rises from {rise[0]} to {rise[1]}"
        )
