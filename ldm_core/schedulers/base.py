"""What every scheduler is: a list of timesteps and a pure step.

A scheduler holds settings and no state. Whatever a multistep method remembers goes in and comes out as
`history`, so a step can be replayed, and one scheduler can serve many trajectories at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from ldm_core.noise_schedule import NoiseSchedule, Predict


@dataclass(frozen=True)
class Step:
    """The outcome of one step: `x` at t_prev, the `x0` that was predicted, and what the next step needs."""

    x: Tensor
    x0: Tensor
    history: Any = None


@runtime_checkable
class Scheduler(Protocol):
    """The seam: anything with these two methods can drive the sampler."""

    def timesteps(self, schedule: NoiseSchedule, n: int) -> list[tuple[int, int]]:
        """n pairs (t, t_prev), noisiest first; t_prev is the next pair's t, and -1 at the end."""
        ...

    def step(
        self, predict: Predict, x: Tensor, t: int, t_prev: int, history: Any, noise: Tensor | None
    ) -> Step:
        """From x_t (B, C, h, w) to x_{t_prev}.

        `predict(x, t)` gives the guided `Prediction` and may be called more than once;
        `predict.schedule` has the tables. `history` is None at the first step, then the last step's.
        `noise` is a standard normal draw of x's shape, which a deterministic scheduler ignores.
        """
        ...
