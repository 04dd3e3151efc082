"""Exercise 8: where img2img enters a run (Meng et al. 2022, SDEdit, arXiv:2108.01073, section 3)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from ldm_core.exercises.expect import draw, expect_equal, expect_pair, expect_values
from ldm_core.exercises.user_file import UserFile, Wrong
from ldm_core.noise_schedule import NoiseSchedule
from ldm_core.schedulers import DDIM
from ldm_core.schedulers.spacing import Pairs, truncate

CASES = (
    ("half of 50 steps", 50, 0.5),
    ("strength 0.75 of 4 steps", 4, 0.75),
    ("strength 1: all steps, from the noisiest", 10, 1.0),
    ("strength 0.29 of 100 steps, which are 29", 100, 0.29),
    ("a single step, strength 0.02 of 50", 50, 0.02),
)


def check(answer: UserFile) -> Iterator[str]:
    start = answer.get("img2img_start")
    schedule = NoiseSchedule()
    x0, noise = draw(2, 4, 3, 3, seed=0), draw(2, 4, 3, 3, seed=1)
    for words, n, strength in CASES:
        yield words
        pairs = DDIM().timesteps(schedule, n)
        given = (x0, noise, schedule, list(pairs), strength)
        x, rest = expect_pair("x, pairs", answer.call(start, *given))
        t, expected = truncate(pairs, strength)
        _expect_pairs(rest, expected, pairs, strength)
        xt = schedule.add_noise(x0, noise, t)
        found = lambda: mistakes(schedule, x0, noise, pairs, expected)  # noqa: B023, E731
        expect_values(f"x at t = {t}", x, xt, found)


def _expect_pairs(rest: Any, expected: Pairs, pairs: Pairs, strength: float) -> None:
    if not isinstance(rest, (list, tuple)) or not rest:
        raise Wrong(f"pairs must be the list of the pairs to run, of {len(expected)}; got {rest!r:.80}.")
    n, k = len(pairs), len(expected)
    mistakes = {
        f"The pairs are the first {k} of the run, the noisiest: img2img runs the last, `pairs[n - k:]`.": (
            pairs[:k]
        ),
        f"The pairs are cut to {k - 1} where {k} belong: strength * n is {strength * n!r}, and int() rounds "
        "it down. Use round().": pairs[n - k + 1 :],
        f"The pairs begin one too early: {k + 1} where {k} belong.": pairs[n - k - 1 :],
        f"The strength is upside down: you run {n - k} of {n} steps. strength is the share of the run that "
        "is run, so strength 1 runs all.": pairs[k:],
        "The pairs are in the wrong order: they go from noise to the image, as in the given list.": (
            expected[::-1]
        ),
        "The pairs are all of the run: drop the first n - k.": pairs,
    }
    expect_equal("pairs", list(rest), expected, lambda: {w: v for w, v in mistakes.items() if v != expected})


def mistakes(
    schedule: NoiseSchedule, x0: Tensor, noise: Tensor, pairs: Pairs, rest: Pairs
) -> dict[str, Tensor]:
    (t, t_prev), k = rest[0], len(rest)
    a, s = schedule.signal_and_noise(t)
    found = {
        "x is the image itself: noise it to the first t of the pairs.": x0,
        "x is pure noise: begin from the image, noised to the first t of the pairs.": noise,
        "x is x_0 + noise: the two need their factors at t, as in `schedule.add_noise(x0, noise, t)`.": (
            x0 + noise
        ),
        "The two factors are swapped: x equals sqrt(1 - alpha) x_0 + sqrt(alpha) noise.": s * x0 + a * noise,
        f"x is noised to t_prev = {t_prev}, but the first step begins at t = {t}.": schedule.add_noise(
            x0, noise, t_prev
        ),
        f"x is noised to the noisiest timestep of the table, but the first step begins at t = {t}.": (
            schedule.add_noise(x0, noise, len(schedule) - 1)
        ),
        f"x is noised to where the whole run begins, but the first step that is run begins at t = {t}.": (
            schedule.add_noise(x0, noise, pairs[0][0])
        ),
        f"The timestep is off by one: x is noised to {t + 1}, but the first step begins at t = {t}.": (
            schedule.add_noise(x0, noise, min(t + 1, len(schedule) - 1))
        ),
        f"The timestep is off by one: x is noised to {t - 1}, but the first step begins at t = {t}.": (
            schedule.add_noise(x0, noise, t - 1)
        ),
    }
    if k < len(pairs):
        above = pairs[len(pairs) - k - 1][0]
        found[
            f"x is noised one level too high: to t = {above}, but the first step that is run begins at "
            f"t = {t}. (CompVis's script does this.) The noise that is left in would show."
        ] = schedule.add_noise(x0, noise, above)
    return found
