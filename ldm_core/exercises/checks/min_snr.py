"""Exercise 4: the min-SNR weights of the loss (Hang et al. 2023, arXiv:2303.09556, section 3.4)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import torch
from torch import Tensor

from ldm_core.exercises.expect import expect_values
from ldm_core.exercises.user_file import UserFile
from ldm_core.noise_schedule import NoiseSchedule, NoiseScheduleConfig
from ldm_core.training.diffusion_loss import Target, min_snr_weight

GAMMA = 5.0


def check(answer: UserFile) -> Iterator[str]:
    weight = answer.get("min_snr_weight")
    usual = NoiseSchedule().alphas_cumprod
    zero_terminal = NoiseSchedule(NoiseScheduleConfig(zero_terminal_snr=True)).alphas_cumprod

    def compare(table: Tensor, gamma: float, target: Target) -> None:
        actual = answer.call(weight, table, gamma, target)
        expected = min_snr_weight(table, gamma, target)
        expect_values(f"the weight for {target}", actual, expected, lambda: mistakes(table, gamma, target))

    for target in reversed(get_args(Target)):  # x0 is the simplest
        yield f"the weights for a network that predicts {target}"
        compare(usual, GAMMA, target)
    yield "another gamma, 1, for eps"
    compare(usual, 1.0, "eps")
    for target in reversed(get_args(Target)):
        yield f"a last timestep without any signal, SNR 0, for {target}"
        compare(zero_terminal, GAMMA, target)


def mistakes(table: Tensor, gamma: float, target: Target) -> dict[str, Tensor]:
    snr = table / (1 - table)
    divisor = {"x0": torch.ones_like(snr), "eps": snr, "v": snr + 1}[target]

    def weight(snr: Tensor = snr, divisor: Tensor = divisor, gamma: float = gamma) -> Tensor:
        return snr.clamp(max=gamma) / divisor

    found = {
        "The weight has the larger of the two, max(SNR, gamma): the smaller one belongs there, min.": (
            snr.clamp(min=gamma) / divisor
        ),
        "The SNR is upside down: it is the signal over the noise, alpha / (1 - alpha).": weight(1 / snr),
        "The SNR lacks a square: it is a_t^2 / s_t^2 = alpha / (1 - alpha), not sqrt(alpha) / sqrt(1 - "
        "alpha).": weight(snr.sqrt(), _of_root(snr, target)),
        "The SNR lacks its denominator: alpha stands where alpha / (1 - alpha) belongs.": weight(table),
        "gamma is not used: you return SNR_t itself.": snr / divisor,
        "The minimum is of gamma and 1: you return a constant.": torch.full_like(snr, min(gamma, 1.0)),
    }
    if gamma != GAMMA:
        found["gamma is not used: the limit is 5 whatever gamma is."] = weight(gamma=GAMMA)
    if target == "eps":
        found |= {
            "For eps, the weight is divided by SNR_t: you return min(SNR, gamma), as for x0.": weight(
                divisor=torch.ones_like(snr)
            ),
            "For eps, the weight is divided by SNR_t alone: SNR_t + 1 is for v.": weight(divisor=snr + 1),
            "For eps, the weight is min(SNR, gamma) / SNR: you multiply by SNR.": weight() * snr**2,
            "At SNR 0 your weight for eps is NaN, 0 / 0. The limit is 1: compute gamma / SNR first, and then "
            "its minimum with 1.": torch.where(snr == 0, torch.nan, weight()),
            "At SNR 0 your weight for eps is 0. The limit of min(SNR, gamma) / SNR is 1.": torch.where(
                snr == 0, 0.0, weight()
            ),
        }
    if target == "v":
        found |= {
            "For v, the weight is divided by SNR_t + 1: you divide by SNR_t, which is for eps.": weight(
                divisor=snr
            ),
            "For v, the weight is divided by SNR_t + 1: you return min(SNR, gamma), which is that of x0.": (
                weight(divisor=torch.ones_like(snr))
            ),
        }
    if target == "x0":
        found["For x0, the weight is min(SNR, gamma) itself: you divide it by SNR."] = weight(divisor=snr)
        found["For x0, the weight is min(SNR, gamma) itself: you divide it by SNR + 1."] = weight(
            divisor=snr + 1
        )
    return found


def _of_root(snr: Tensor, target: Target) -> Tensor:
    """The divisor of an answer that takes the root of the SNR for the SNR."""
    root = snr.sqrt()
    return {"x0": torch.ones_like(root), "eps": root, "v": root + 1}[target]
