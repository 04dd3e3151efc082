"""The interface of a scheduler: a list of timesteps and a pure step function.

A scheduler holds settings and no state. What a multistep method has to remember is passed in and returned as
`history`, so a step can be replayed, and one scheduler can serve many trajectories at the same time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from ldm_core.noise_schedule import NoiseSchedule, Predict


@dataclass(frozen=True)
class Step:
    """The result of one step: `x` at t_prev, the predicted `x0`, and the `history` for the next step."""

    x: Tensor
    x0: Tensor
    history: Any = None


@runtime_checkable
class Scheduler(Protocol):
    """The interface that the sampler uses: any object with these two methods is a scheduler."""

    def timesteps(self, schedule: NoiseSchedule, n: int) -> list[tuple[float, float]]:
        """n pairs (t, t_prev), noisiest first; t_prev is the next pair's t, and -1 at the end.

        Raises ValueError for n outside 1..len(schedule).
        """
        ...

    def step(
        self, predict: Predict, x: Tensor, t: float, t_prev: float, history: Any, noise: Tensor | None
    ) -> Step:
        """From x_t (B, C, h, w) to x_{t_prev}.

        `predict(x, t)` returns the guided `Prediction` and may be called more than once;
        `predict.schedule` is the noise schedule. `history` is None at the first step, and afterwards the
        `history` of the previous step. `noise` is a standard normal draw of x's shape and dtype, which a
        deterministic scheduler ignores; it is None if the class sets `adds_noise` to False. No argument is
        modified, and equal arguments give equal bits.
        """
        ...


def adds_noise(scheduler: Any) -> bool:
    """Whether a scheduler's steps use noise: its `adds_noise`, or True if its own class does not define that.

    The attribute is not inherited, since a subclass may add noise where its parent does not.
    """
    return bool(scheduler.adds_noise) if "adds_noise" in vars(type(scheduler)) else True


def require_noise(noise: Tensor | None, x: Tensor) -> Tensor:
    """Return `noise`. Raises ValueError if it is None or does not have x's shape."""
    if noise is None:
        raise ValueError("this step adds noise: pass a standard normal draw of x's shape, not None")
    if noise.shape != x.shape:
        raise ValueError(f"noise must have x's shape {tuple(x.shape)}, got {tuple(noise.shape)}")
    return noise


def last_alpha_cumprod(schedule: NoiseSchedule, t_prev: float, set_alpha_to_one: bool) -> float:
    """alphas_cumprod at t_prev; at the end of the run (-1), 1 or, as in CompVis, alphas_cumprod[0]."""
    if t_prev == -1 and not set_alpha_to_one:
        return schedule.alpha_cumprod(0)
    return schedule.alpha_cumprod(t_prev)
