"""Exercise 11: PLMS (Liu et al. 2022, arXiv:2202.09778, equations 11 and 12, with CompVis's first step)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ldm_core.exercises.expect import draw, expect_values
from ldm_core.exercises.user_file import UserFile, Wrong
from ldm_core.noise_schedule import NoiseSchedule, Prediction
from ldm_core.schedulers import PNDM, Step, ddim_update
from ldm_core.schedulers.pndm import ADAMS_BASHFORTH
from ldm_core.testing import check_scheduler

STEPS = 6
NAMES = (
    "step 1: improved Euler, the mean of two eps",
    "step 2: two eps, (3 eps_1 - eps_2) / 2",
    "step 3: three eps, (23 eps_1 - 16 eps_2 + 5 eps_3) / 12",
    "step 4: four eps, (55 eps_1 - 59 eps_2 + 37 eps_3 - 9 eps_4) / 24",
    "step 5: the last four eps",
    "step 6: to the clean image",
)
Eps = list[Tensor]
Move = Callable[..., Tensor]  # (eps, x_t unless another x is given) -> x at t_prev


class Network:
    """A `Predict` that is nonlinear in x and t, and keeps the timesteps that it is called with."""

    def __init__(self) -> None:
        self.schedule = NoiseSchedule()
        self.calls: list[float] = []

    def __call__(self, x: Tensor, t: float) -> Prediction:
        self.calls.append(t)
        eps = torch.tanh(0.9 * x - 0.6 * x.roll(1, dims=-1) + torch.sin(torch.tensor(t / 150)))
        return Prediction(self.schedule.x0_from_eps(x, eps, t), eps)


def check(answer: UserFile) -> Iterator[str]:
    make = answer.get("PLMS")
    with answer.guarded("PLMS()"):
        scheduler = make()
    network, library = Network(), PNDM()
    pairs = library.timesteps(network.schedule, STEPS)
    x, history, theirs = draw(2, 4, 3, 5, seed=0), None, None
    past: Eps = []  # the network's eps of earlier steps, newest first
    mixed: Eps = []  # and what was combined from them
    for name, (t, t_prev) in zip(NAMES, pairs):
        yield name
        expected = library.step(Network(), x, t, t_prev, history, None)
        network.calls.clear()
        step = answer.call(scheduler.step, network, x, t, t_prev, theirs, None, name="PLMS.step")
        _expect_step(step)
        _expect_calls(network.calls, [t, t_prev] if not past else [t], t_prev)
        eps = [Network()(x, t).eps, *past]
        found = lambda: mistakes(x, t, t_prev, eps, mixed)  # noqa: B023, E731
        expect_values(f"x at t = {t_prev}", step.x, expected.x, found)
        mixed = [network.schedule.eps_from_x0(x, expected.x0, t), *mixed]
        x, history, theirs, past = expected.x, expected.history, step.history, eps
    yield "a run of a single step, which is a step of DDIM"
    pair = library.timesteps(network.schedule, 1)[0]
    network.calls.clear()
    step = answer.call(scheduler.step, network, x, *pair, None, None, name="PLMS.step")
    _expect_calls(network.calls, [pair[0]], pair[1])
    expect_values("x of a single step", step.x, library.step(Network(), x, *pair, None, None).x)
    yield "the contract of a scheduler (ldm_core.testing.check_scheduler)"
    answer.meets(check_scheduler, scheduler, stochastic=False, steps=(1, 2, 10, 50), dtypes=(torch.float32,))


def _expect_step(step: Any) -> None:
    if not isinstance(step, Step):
        raise Wrong(f"step must return a Step(x, x0, history), not a {type(step).__name__}.")
    if not isinstance(step.x0, Tensor) or step.x0.shape != step.x.shape:
        raise Wrong("Step.x0 must be the predicted x_0, of x's shape: it is what previews show.")
    if step.history is None:
        raise Wrong(
            "Step.history is None, so that the next step knows no earlier eps. Return those that it needs: "
            "a scheduler keeps no state of its own."
        )


def _expect_calls(calls: list[float], expected: list[float], t_prev: float) -> None:
    if calls == expected:
        return
    got = ", ".join(map(str, calls)) or "never"
    if len(expected) == 2:
        hint = "The first step calls it at t and, at the x of a plain step, at t_prev."
        if calls == expected[:1]:
            hint += " Here it is called once: this is a step of DDIM, of first order."
    elif -1 in calls:
        hint = (
            "-1 is the clean image, of which a network knows nothing: the last step uses the eps at t alone."
        )
    else:
        hint = "A step with a history calls it once, at t: the earlier eps are in the history."
    wanted = ", ".join(map(str, expected))
    raise Wrong(f"The network is called at t = {got} where {wanted} is expected (t_prev is {t_prev}). {hint}")


def mistakes(x: Tensor, t: float, t_prev: float, eps: Eps, mixed: Eps) -> dict[str, Tensor]:
    """eps: of this step and of all before; mixed: the combined eps of those before. Both newest first."""
    schedule = NoiseSchedule()

    def move(e: Tensor, x: Tensor = x) -> Tensor:
        return ddim_update(schedule, schedule.x0_from_eps(x, e, t), e, t, t_prev)

    found = {"This is a step of DDIM: eps alone, without the earlier ones.": move(eps[0])}
    return found | (_of_first(move, x, t, t_prev, eps[0]) if len(eps) == 1 else _of_later(move, eps, mixed))


def _of_first(move: Move, x: Tensor, t: float, t_prev: float, now: Tensor) -> dict[str, Tensor]:
    """The mistakes of the first step."""
    then = Network()(move(now), t_prev).eps
    return {
        "This is the second eps alone: take the mean of both.": move(then),
        "The two eps are added, not averaged: divide by 2.": move(now + then),
        "The second eps is of x_t at t_prev: it belongs to the x of the plain step, x at t_prev.": move(
            (now + Network()(x, t_prev).eps) / 2
        ),
        "The combined eps is applied to the x of the plain step: apply it to x_t, from which the step "
        "begins.": move((now + then) / 2, move(now)),
        "The weights are 3/2 and -1/2: at the first step, take the mean.": move((3 * now - then) / 2),
    }


def _of_later(move: Move, eps: Eps, mixed: Eps) -> dict[str, Tensor]:
    """The mistakes of a step that has earlier eps."""
    order = min(len(eps), 4)
    used, weights = eps[:order], ADAMS_BASHFORTH[order - 1]

    def combined(weights: tuple[float, ...], eps: Eps) -> Tensor:
        return move(sum((w * e for w, e in zip(weights, eps)), start=torch.zeros_like(eps[0])))

    found = {
        f"You use {lower} eps where {order} are known: the order grows up to 4 with the history.": combined(
            ADAMS_BASHFORTH[lower - 1], eps
        )
        for lower in range(2, order)
    }
    positive = tuple(abs(w) / sum(map(abs, weights)) for w in weights)
    found |= {
        "The eps come in the wrong order: the first weight is of the newest.": combined(weights, used[::-1]),
        "The earlier eps come in the wrong order: the history is oldest first, and must be newest first.": (
            combined(weights, [used[0], *used[:0:-1]])
        ),
        "All weights are positive: their signs alternate.": combined(tuple(map(abs, weights)), used),
        "The weights are positive and sum to 1: their signs alternate.": combined(positive, used),
        "This is the mean of the eps: the weights are those of Adams and Bashforth.": combined(
            (1 / order,) * order, used
        ),
        "The eps are combined with the divisor missing: divide by 2, 12 or 24.": combined(
            tuple(w * (2, 12, 24)[order - 2] for w in weights), used
        ),
        "The newest eps is used twice: the history already contains it.": combined(
            weights, [used[0], *used[: order - 1]]
        ),
        "The history holds the combined eps of earlier steps: keep the network's own eps in it.": combined(
            weights, [eps[0], *mixed[: order - 1]]
        ),
        "The eps of this step is missing: the history is combined without it.": combined(
            ADAMS_BASHFORTH[order - 2], used[1:]
        ),
    }
    if len(eps) > 4:
        found["The oldest eps are used: the history must keep the newest three."] = combined(
            weights, [eps[0], *eps[-3:]]
        )
    return found
