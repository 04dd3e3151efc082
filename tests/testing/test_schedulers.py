"""`check_scheduler`: every way to break a scheduler is told in words.

Broken parts come in tables. Each part is the smallest change of one that works, so that only the clause in
question can catch it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from support.contracts import broken, expect_told, told
from torch import Tensor

from ldm_core.noise_schedule import NoiseSchedule
from ldm_core.schedulers import DDIM, DDPM, Step
from ldm_core.testing import check_scheduler


@dataclass
class Altered:
    """DDIM, or another scheduler, with its timesteps or its step changed by a function."""

    base: Any = field(default_factory=DDIM)
    pairs: Callable[[list[tuple[int, int]], int], Any] = lambda pairs, n: pairs
    before: Callable[..., Any] = lambda x, history, noise: (x, history, noise)
    after: Callable[[Step, Any], Any] = lambda step, predict: step
    calls: list[int] = field(default_factory=list)

    def timesteps(self, schedule: NoiseSchedule, n: int) -> Any:
        return self.pairs(self.base.timesteps(schedule, n), n)

    def step(self, predict: Any, x: Tensor, t: int, t_prev: int, history: Any, noise: Any) -> Any:
        self.calls.append(t)
        x, history, noise = self.before(x, history, noise)
        return self.after(self.base.step(predict, x, t, t_prev, history, noise), predict)


class HiddenCounter(Altered):
    """Takes its timesteps from a list of its own, by a counter, as some libraries do."""

    levels: list[tuple[int, int]] = []  # noqa: RUF012
    index = 0

    def timesteps(self, schedule: NoiseSchedule, n: int) -> Any:
        self.levels, self.index = self.base.timesteps(schedule, n), 0
        return list(self.levels)

    def step(self, predict: Any, x: Tensor, t: int, t_prev: int, history: Any, noise: Any) -> Any:
        t, t_prev = self.levels[min(self.index, len(self.levels) - 1)]
        self.index += 1
        return super().step(predict, x, t, t_prev, history, noise)


class Unchecked(Altered):
    def timesteps(self, schedule: NoiseSchedule, n: int) -> Any:
        return self.base.timesteps(schedule, min(max(n, 1), len(schedule)))


class Crashing(Altered):
    def timesteps(self, schedule: NoiseSchedule, n: int) -> Any:
        stride = len(schedule) // n
        return [(k * stride, (k - 1) * stride if k else -1) for k in reversed(range(n))]


class OneBuffer(Altered):
    buffer = torch.empty(0)

    def step(self, predict: Any, x: Tensor, t: int, t_prev: int, history: Any, noise: Any) -> Any:
        step = super().step(predict, x, t, t_prev, history, noise)
        if self.buffer.shape != step.x.shape or self.buffer.dtype != step.x.dtype:
            self.buffer = step.x.clone()
        return Step(self.buffer.copy_(step.x), step.x0)


class AsksBelowTheTable(Altered):
    def step(self, predict: Any, x: Tensor, t: int, t_prev: int, history: Any, noise: Any) -> Any:
        step = super().step(predict, x, t, t_prev, history, noise)
        predict(step.x, t_prev)
        return step


class LastOfTheFirst(Altered):
    """A multistep history that holds x, and prefers it to the x that it is given."""

    def step(self, predict: Any, x: Tensor, t: int, t_prev: int, history: Any, noise: Any) -> Any:
        step = super().step(predict, x if history is None else history, t, t_prev, None, noise)
        return replace(step, history=step.x)


class GrowingHistory(Altered):
    def step(self, predict: Any, x: Tensor, t: int, t_prev: int, history: Any, noise: Any) -> Any:
        history = [] if history is None else history
        history.append(t)
        return replace(super().step(predict, x, t, t_prev, None, noise), history=history)


class OwnNoise(Altered):
    def step(self, predict: Any, x: Tensor, t: int, t_prev: int, history: Any, noise: Any) -> Any:
        return super().step(predict, x, t, t_prev, history, torch.randn_like(x))


class PythonNoise(Altered):
    def step(self, predict: Any, x: Tensor, t: int, t_prev: int, history: Any, noise: Any) -> Any:
        return super().step(predict, x, t, t_prev, history, noise * random.random())


class ZeroWithoutNoise(Altered):
    def step(self, predict: Any, x: Tensor, t: int, t_prev: int, history: Any, noise: Any) -> Any:
        return super().step(predict, x, t, t_prev, history, torch.zeros_like(x) if noise is None else noise)


class Unrooted(Altered):
    """sqrt(1 - alpha_prev) without the square root."""

    def step(self, predict: Any, x: Tensor, t: int, t_prev: int, history: Any, noise: Any) -> Any:
        prediction = predict(x, t)
        a, s = predict.schedule.signal_and_noise(max(t_prev, 0))
        return Step(a * prediction.x0 + s**2 * prediction.eps, prediction.x0)


class StandardDeviationAsVariance(Altered):
    def step(self, predict: Any, x: Tensor, t: int, t_prev: int, history: Any, noise: Any) -> Any:
        step = self.base.step(predict, x, t, t_prev, history, noise)
        mean = self.base.step(predict, x, t, t_prev, history, torch.zeros_like(x)).x
        return Step(mean + 0.5 * (step.x - mean), step.x0) if noise is not None else step


def in_place(x: Tensor, history: Any, noise: Any) -> Any:
    return x.mul_(0.5), history, noise


def shifted_noise(x: Tensor, history: Any, noise: Any) -> Any:
    if noise is not None:
        noise.add_(1)
    return x, history, noise


def clamp_predictions(step: Step, predict: Any) -> Step:
    predict.given[-1][0].x0.clamp_(-0.1, 0.1) if hasattr(predict, "given") else None
    return step


def over_the_batch(step: Step, predict: Any) -> Step:
    return replace(step, x=step.x / step.x.abs().max().clamp(min=1))


BROKEN_SCHEDULERS = [
    broken(
        "n + 1 steps", Altered(pairs=lambda p, n: [(p[0][0] + 1, p[0][0]), *p]), "exactly 10 pairs; got 11"
    ),
    broken("n that do not divide", DDIM(spacing="compvis"), "exactly 7 pairs; got 8"),
    broken(
        "rising", Altered(pairs=lambda p, n: p[::-1]), "to descend, noisiest first", "to chain", "end at -1"
    ),
    broken(
        "unchained", Altered(pairs=lambda p, n: [(t, max(u - 1, -1)) for t, u in p]), "t_prev is the next"
    ),
    broken(
        "ends early",
        Altered(pairs=lambda p, n: [*p[:-1], (p[-1][0], 0)]),
        "end at -1, the clean image; got 0",
    ),
    broken(
        "numpy ints", Altered(pairs=lambda p, n: [(np.int64(t), u) for t, u in p]), "pairs of Python ints"
    ),
    broken(
        "outside the table", Altered(pairs=lambda p, n: [(5000, p[0][1]), *p[1:]]), "table, 0..999; got (5000"
    ),
    broken("any number", Unchecked(), "timesteps(schedule, 0)", "1001)", "raise a ValueError; got no error"),
    broken("another error", Crashing(), "raise a ValueError; got ZeroDivisionError"),
    broken("not a step", Altered(after=lambda step, p: (step.x, step.x0)), "AttributeError: 'tuple' object"),
    broken(
        "shape", Altered(after=lambda s, p: replace(s, x=s.x[:1])), "to be (3, 4, 4, 6)", "got (1, 4, 4, 6)"
    ),
    broken(
        "dtype", Altered(after=lambda s, p: replace(s, x=s.x.double())), "of torch.float32", "torch.float64"
    ),
    broken(
        "device", Altered(after=lambda s, p: replace(s, x0=s.x0.to("meta"))), ".x0 to be", "on cpu", "on meta"
    ),
    broken("NaN", Altered(after=lambda s, p: replace(s, x0=s.x0 / 0 * 0)), ".x0 to be finite"),
    broken("calls at -1", AsksBelowTheTable(), "a t in 0..999); got x of (3, 4, 4, 6), t = -1"),
    broken(
        "ignores noise", Altered(DDPM(), before=lambda x, h, z: (x, h, 0 * z)), "probability-flow", "to fall"
    ),
    broken("noise not told", ZeroWithoutNoise(DDPM()), "noise=None, where noise is needed", "got no error"),
    broken(
        "needs noise",
        Altered(before=lambda x, h, z: (x, h, z.abs())),
        "noise=None, which is ignored here, to work; got AttributeError",
    ),
    broken(
        "global noise",
        OwnNoise(DDPM()),
        "not to use torch's global random numbers",
        "another torch.manual_seed",
    ),
    broken("other random numbers", PythonNoise(DDPM()), "replay", "repeated after other calls"),
    broken("writes into x", Altered(before=in_place), "purity", "not to modify x"),
    broken("writes into noise", Altered(DDPM(), before=shifted_noise), "purity", "not to modify noise"),
    broken("writes into predictions", Altered(after=clamp_predictions), "not to modify predictions"),
    broken("writes into history", GrowingHistory(), "not to modify history"),
    broken("a buffer", OneBuffer(), "an earlier Step not to change"),
    broken(
        "hidden counter",
        HiddenCounter(),
        "replay",
        "repeated after other calls, to return the same x, bit for bit",
        "hidden counters",
    ),
    broken("x of its own", LastOfTheFirst(), "x comes from the caller", "to depend on its x"),
    broken(
        "batch statistics", Altered(after=over_the_batch), "batch independence", "row 1 alone to equal row 1"
    ),
    broken(
        "half tables",
        Altered(after=lambda s, p: replace(s, x=s.x * (1 + (s.x.dtype == torch.float32) * 1e-3))),
        "precision",
        "float32 to follow float64",
    ),
    broken("wrong coefficient", Unrooted(), "convergence", "the error on Gaussian data", "to fall 12-fold"),
    broken(
        "0.1 % too large at every step",
        Altered(after=lambda s, p: replace(s, x=s.x * 1.001)),
        "convergence",
        "to fall 12-fold",
    ),
    broken("wrong noise", StandardDeviationAsVariance(DDPM()), "the variance of samples", "within 6%"),
    broken("shifted", Altered(DDPM(), after=lambda s, p: replace(s, x=s.x + 2e-3)), "the mean of samples"),
    broken(
        "x0 is x", Altered(after=lambda s, p: replace(s, x0=s.x + 1)), "Step.x0 to be the exact prediction"
    ),
]


CONVERGENCE = {
    "convergence",
    "to fall",
    "the variance of samples",
    "the mean of samples",
    "Step.x0 to be the exact prediction",
}


@pytest.mark.one_in(3)
@pytest.mark.parametrize(("part", "words"), BROKEN_SCHEDULERS)
def test_a_broken_scheduler_is_told(part: Any, words: tuple[str, ...]) -> None:
    """Convergence, which takes most of the time, is tried where it is what breaks."""
    expect_told(told(check_scheduler, part, converges=bool({*words} & CONVERGENCE)), words)


@pytest.mark.slow  # half a minute of trajectories
@pytest.mark.parametrize(("part", "words"), BROKEN_SCHEDULERS)
def test_a_broken_scheduler_is_told_by_all_clauses_together(part: Any, words: tuple[str, ...]) -> None:
    expect_told(told(check_scheduler, part), words)


def test_whether_noise_is_used_can_be_demanded() -> None:
    assert "expected a step to use `noise`; got one not to use it" in told(
        check_scheduler, DDIM(), stochastic=True
    )
    assert "expected a step not to use `noise`" in told(check_scheduler, DDPM(), stochastic=False)


def test_numbers_of_steps_can_be_named() -> None:
    check_scheduler(DDIM(spacing="compvis"), steps=(1, 2, 10, 50))


def test_convergence_can_be_waived() -> None:
    check_scheduler(Unrooted(), converges=False)
