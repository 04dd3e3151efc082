"""Draws schedulers.png: which timesteps each spacing visits, and how fast each scheduler converges.

    python docs/figures/schedulers.py [OUT.png]

The convergence is measured on data whose exact score is known, x_0 ~ N(0.3, 0.5^2), with SD1's own table of
1000 steps. Needs matplotlib (the `docs` extra).
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from ldm_core.noise_schedule import Denoiser, NoiseSchedule
from ldm_core.schedulers import DDIM, PNDM, Spacing, spaced_pairs

SCHEDULE = NoiseSchedule()
MU, C = 0.3, 0.5
STEPS = (5, 10, 20, 25, 50, 100, 250)
SCHEDULERS = {"DDIM": DDIM(), "PNDM (PLMS)": PNDM(), "PNDM (Runge-Kutta)": PNDM(warmup="runge_kutta")}


def std(t: int) -> float:
    a, s = SCHEDULE.signal_and_noise(t)
    return math.sqrt(a * a * C * C + s * s)


def eps(x: Tensor, t: int) -> Tensor:
    a, s = SCHEDULE.signal_and_noise(t)
    return s * (x - a * MU) / std(t) ** 2


def measure(scheduler: Any, n: int) -> tuple[int, float]:
    """(network calls, largest error over largest value) of one run from +-2 standard deviations."""
    calls = 0

    def counted(x: Tensor, t: int) -> Tensor:
        nonlocal calls
        calls += 1
        return eps(x, t)

    pairs = scheduler.timesteps(SCHEDULE, n)
    start = torch.tensor([-2.0, -1.0, 1.0, 2.0], dtype=torch.float64)
    x, history = SCHEDULE.signal_and_noise(pairs[0][0])[0] * MU + std(pairs[0][0]) * start, None
    for t, t_prev in pairs:
        step = scheduler.step(Denoiser(counted, SCHEDULE), x, t, t_prev, history, None)
        x, history = step.x, step.history
    expected = SCHEDULE.signal_and_noise(0)[0] * MU + std(0) * start
    return calls, float((x - expected).abs().max() / expected.abs().max())


def table() -> list[str]:
    """The rows that docs/schedulers.md shows."""
    rows = ["| scheduler | " + " | ".join(f"n = {n}" for n in STEPS) + " |", "|---|" + "---|" * len(STEPS)]
    for name, scheduler in SCHEDULERS.items():
        errors = (measure(scheduler, n)[1] for n in STEPS)
        rows.append(f"| {name} | " + " | ".join(f"{error:.1e}" for error in errors) + " |")
    return rows


def draw(out: Path) -> None:
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    spacings = get_args(Spacing)
    for row, spacing in enumerate(spacings):
        timesteps = [t for t, _ in spaced_pairs(len(SCHEDULE), 7, spacing, 1)]
        left.plot(timesteps, [row] * len(timesteps), "o")
        for t in timesteps:
            left.annotate(
                str(t), (t, row), xytext=(0, 6), textcoords="offset points", ha="center", fontsize=7
            )
    left.set(
        yticks=range(len(spacings)),
        yticklabels=spacings,
        ylim=(len(spacings) - 0.5, -0.7),
        xlim=(1040, -40),
        xlabel="timestep t, noise to image",
        title="timesteps visited for n = 7",
    )
    for name, scheduler in SCHEDULERS.items():
        right.loglog(*zip(*(measure(scheduler, n) for n in STEPS)), "o-", label=name, markersize=4)
    right.set(xlabel="network calls", ylabel="relative error", title="error against the exact ODE solution")
    right.grid(True, which="both", alpha=0.2)
    right.legend()
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    print("\n".join(table()))
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_suffix(".png"))
