"""Exercise 1: x_t = sqrt(alphas_cumprod[t]) x_0 + sqrt(1 - alphas_cumprod[t]) noise (DDPM, equation 4)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ldm_core.exercises.expect import draw, expect_values
from ldm_core.exercises.user_file import UserFile
from ldm_core.noise_schedule import NoiseSchedule

SHAPE = (3, 4, 5, 3)  # as many columns as rows of the batch: factors along the wrong axis fit, too


def check(answer: UserFile) -> Iterator[str]:
    add_noise = answer.get("add_noise")
    schedule = NoiseSchedule()
    x0, noise = draw(*SHAPE, seed=0), draw(*SHAPE, seed=1)

    def compare(t: Tensor) -> None:
        table = schedule.alphas_cumprod.clone()
        actual = answer.call(add_noise, x0, noise, table, t)
        expected = schedule.add_noise(x0, noise, t)
        expect_values("x_t", actual, expected, lambda: mistakes(x0, noise, table, t))

    yield "x_t, with another timestep in each row: 10, 500 and 900"
    compare(torch.tensor([10, 500, 900]))
    yield "x_t at the first timestep, 0, and at the last, 999"
    compare(torch.tensor([0, 999, 500]))
    yield "x_t where all rows have the same timestep"
    compare(torch.tensor([300, 300, 300]))


def mistakes(x0: Tensor, noise: Tensor, table: Tensor, t: Tensor) -> dict[str, Tensor]:
    def mixed(a: Tensor, s: Tensor) -> Tensor:
        return a * x0.double() + s * noise.double()

    def rows(values: Tensor) -> Tensor:
        return values[:, None, None, None]

    alpha = rows(table[t])
    a, s = alpha.sqrt(), (1 - alpha).sqrt()
    later, sooner = rows(table[(t + 1).clamp(max=len(table) - 1)]), rows(table[(t - 1).clamp(min=0)])
    wrong_axis = table[t]
    return {
        "The two factors are swapped: x_t equals sqrt(1 - alpha) x_0 + sqrt(alpha) noise. "
        "sqrt(alpha) belongs to x_0, and sqrt(1 - alpha) to the noise.": mixed(s, a),
        "Both square roots are missing: x_t equals alpha x_0 + (1 - alpha) noise. alpha and 1 - alpha are "
        "the shares of the variance, and the factors are their roots.": mixed(alpha, 1 - alpha),
        "The square root of alpha is missing: x_t equals alpha x_0 + sqrt(1 - alpha) noise.": mixed(alpha, s),
        "The square root of 1 - alpha is missing: x_t equals sqrt(alpha) x_0 + (1 - alpha) noise. 1 - alpha "
        "is the variance of the noise, and its root the standard deviation.": mixed(a, 1 - alpha),
        "The noise has the factor 1 - sqrt(alpha) where sqrt(1 - alpha) belongs: the root is of the whole "
        "difference.": mixed(a, 1 - a),
        "sqrt(alpha) is the factor of both: the noise needs sqrt(1 - alpha).": mixed(a, a),
        "The noise has no factor: x_t equals sqrt(alpha) x_0 + noise.": mixed(a, torch.ones_like(s)),
        "x_0 has no factor: x_t equals x_0 + sqrt(1 - alpha) noise.": mixed(torch.ones_like(a), s),
        "The noise has the wrong sign: x_t equals sqrt(alpha) x_0 - sqrt(1 - alpha) noise.": mixed(a, -s),
        "The timesteps are off by one: x_t is that of t + 1.": mixed(later.sqrt(), (1 - later).sqrt()),
        "The timesteps are off by one: x_t is that of t - 1.": mixed(sooner.sqrt(), (1 - sooner).sqrt()),
        "The factors run along the columns of the images instead of the rows of the batch: a tensor of shape "
        "(B,) meets the last axis. Make it (B, 1, 1, 1), as by `[:, None, None, None]`.": mixed(
            wrong_axis.sqrt(), (1 - wrong_axis).sqrt()
        ),
        "All rows have the factors of the first timestep, t[0]: each row needs those of its own.": mixed(
            a[:1], s[:1]
        ),
        "The table is multiplied up once more: `alphas_cumprod` is the product already, so take its entry at "
        "t as it is.": mixed(rows(table.cumprod(0)[t]).sqrt(), (1 - rows(table.cumprod(0)[t])).sqrt()),
    }
