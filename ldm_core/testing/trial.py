"""Runs a scheduler with a fixed function as network, and records every step."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ldm_core.noise_schedule import NoiseSchedule, Prediction
from ldm_core.schedulers.base import Scheduler, Step
from ldm_core.testing.contract import draw, snapshot

SHAPE = (3, 4, 4, 6)  # of the latents: B, C, h, w
STEPS = 5  # of the trajectory in most clauses

Pairs = list[tuple[float, float]]


class FixedNetwork:
    """A `Predict` that is nonlinear in x and t and mixes pixels; it records its calls."""

    def __init__(self, schedule: NoiseSchedule) -> None:
        self.schedule = schedule
        self.calls: list[tuple[Any, Any]] = []  # (x's shape, t)
        self.given: list[tuple[Prediction, Prediction]] = []  # the returned prediction and a copy

    def __call__(self, x: Tensor, t: float) -> Prediction:
        self.calls.append((tuple(x.shape), t))
        v = torch.tanh(0.9 * x - 0.6 * x.roll(1, dims=-1) + math.sin(t / 150))
        prediction = Prediction(self.schedule.x0_from_v(x, v, t), self.schedule.eps_from_v(x, v, t))
        self.given.append((prediction, snapshot(prediction)))
        return prediction


@dataclass(frozen=True)
class Call:
    """The arguments and the result of one step."""

    x: Tensor
    t: float
    t_prev: float
    history: Any
    noise: Tensor | None
    step: Any = None


@dataclass(frozen=True)
class Trial:
    """A scheduler and a noise schedule to run it on."""

    scheduler: Scheduler
    schedule: NoiseSchedule
    device: torch.device

    def draw(self, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return draw(*SHAPE, seed=seed, dtype=dtype, device=self.device)

    def pairs(self, n: int) -> Pairs:
        return list(self.scheduler.timesteps(self.schedule, n))

    def run(
        self,
        x: Tensor | None = None,
        *,
        pairs: Pairs | None = None,
        rows: slice = slice(None),
        noise_seed: int = 100,
        dtype: torch.dtype = torch.float64,
        network: FixedNetwork | None = None,
    ) -> list[Call]:
        """All steps of a run. Step i draws its noise with `noise_seed` + i; `rows` selects images of the
        batch.

        Arguments and results are copied, so that a step that modifies them violates one clause, not all.
        """
        x = (self.draw(0, dtype) if x is None else x)[rows]
        network = FixedNetwork(self.schedule) if network is None else network
        calls: list[Call] = []
        history = None
        for i, (t, t_prev) in enumerate(self.pairs(STEPS) if pairs is None else pairs):
            noise = self.draw(noise_seed + i, dtype)[rows]
            given = Call(*snapshot((x, t, t_prev, history, noise)))
            step = snapshot(self.step(given, network))
            calls.append(Call(x, t, t_prev, history, noise, step))
            x, history = step.x, step.history
        return calls

    def step(self, call: Call, network: FixedNetwork) -> Step:
        return self.scheduler.step(network, call.x, call.t, call.t_prev, call.history, call.noise)

    def replay(self, call: Call) -> Step:
        """Compute a step again, with copies of its arguments."""
        return self.step(snapshot(replace(call, step=None)), FixedNetwork(self.schedule))
