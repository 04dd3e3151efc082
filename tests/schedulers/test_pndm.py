"""PNDM, step by step against diffusers."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from diffusers import PNDMScheduler
from support.scheduler_runs import (
    PREDICTION_TYPE,
    SCHEDULE,
    SD1_BETAS,
    SHAPE,
    denoiser,
    draw,
    error,
    network,
    run,
    with_our_table,
    with_tolerances,
)
from torch import Tensor

from ldm_core.schedulers import PNDM, truncate

# --- PNDM against diffusers ----------------------------------------------------------------------------


def diffusers_pndm(ours: PNDM, n: int, prediction: str = "eps") -> Any:
    theirs: Any = PNDMScheduler(
        **SD1_BETAS,
        skip_prk_steps=ours.warmup == "plms",
        set_alpha_to_one=ours.set_alpha_to_one,
        steps_offset=ours.steps_offset,
        timestep_spacing=ours.spacing,
        prediction_type=PREDICTION_TYPE[prediction],
    )
    theirs.set_timesteps(n)
    return theirs


def run_diffusers_pndm(
    theirs: Any, x: Tensor, function: Callable[[Tensor, int], Tensor] = network
) -> list[Tensor]:
    """x after each network call; of a warm-up step's calls the last one is the step's outcome."""
    out = []
    for t in theirs.timesteps.tolist():
        x = theirs.step(function(x, t), t, x).prev_sample
        out.append(x)
    return out


def calls_per_step(warmup: str, n: int) -> list[int]:
    if warmup == "plms":
        return [2] + [1] * (n - 1) if n > 1 else [1]
    return [4] * min(3, n - 1) + [1] * max(n - 3, 1)


PNDM_CASES = [
    (n, PNDM(warmup=warmup, spacing=spacing, set_alpha_to_one=to_one))
    for n in (5, 10, 50)
    for warmup in ("plms", "runge_kutta")
    for spacing in ("leading", "trailing")
    for to_one in (False, True)
]


@pytest.mark.parametrize(("n", "ours"), [*PNDM_CASES, (1, PNDM()), (2, PNDM()), (30, PNDM()), (7, PNDM())])
def test_every_pndm_step_and_trajectory_is_diffusers(n: int, ours: PNDM) -> None:
    x = draw(*SHAPE)
    pairs = ours.timesteps(SCHEDULE, n)
    ends = [i - 1 for i in itertools.accumulate(calls_per_step(ours.warmup, n))]

    exact = run_diffusers_pndm(with_our_table(diffusers_pndm(ours, n), ours.set_alpha_to_one), x)
    assert len(exact) == ends[-1] + 1
    for step, end in zip(run(ours, denoiser(), x, pairs), ends, strict=True):
        assert error(step.x, exact[end]) < 1e-9

    x = x.float()
    theirs = run_diffusers_pndm(diffusers_pndm(ours, n), x)
    for step, end in zip(run(ours, denoiser(), x, pairs), ends, strict=True):
        assert error(step.x, theirs[end]) < 1e-5


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_single_plms_step_is_diffusers(length: int) -> None:
    # From the same x and the same past.
    ours = PNDM()
    for i, (t, t_prev) in enumerate(ours.timesteps(SCHEDULE, 50)):
        exact, theirs = with_our_table(diffusers_pndm(ours, 50)), diffusers_pndm(ours, 50)
        for reference, dtype, tolerance in with_tolerances(exact, theirs):
            x = draw(*SHAPE, seed=i, dtype=dtype)
            history = tuple(draw(*SHAPE, seed=500 + i + k, dtype=dtype) for k in range(length))
            reference.ets, reference.counter = list(history[::-1]), length + 1
            step = ours.step(denoiser(), x, t, t_prev, history, None)
            assert error(step.x, reference.step(network(x, t), t, x).prev_sample) < tolerance


def test_half_way_in_a_runge_kutta_step_is_diffusers_only_for_even_strides() -> None:
    # For an odd stride diffusers moves x to t - stride // 2 but asks the network at one timestep less (and
    # its third move stops one short of where it asks). Ours moves to the timestep at which it asks.
    def asked(n: int) -> tuple[list[int], list[int]]:
        theirs = diffusers_pndm(PNDM(warmup="runge_kutta"), n).timesteps.tolist()
        calls: list[int] = []
        scheduler = PNDM(warmup="runge_kutta")
        run(scheduler, denoiser(calls=calls), draw(*SHAPE), scheduler.timesteps(SCHEDULE, n))
        return calls, theirs

    for n in (50, 8):  # strides 20 and 125
        calls, theirs = asked(n)
        assert calls == theirs
    ours = PNDM(warmup="runge_kutta")
    x = draw(*SHAPE)
    first = ours.step(denoiser(), x, *ours.timesteps(SCHEDULE, 8)[0], None, None).x
    difference = error(first, run_diffusers_pndm(with_our_table(diffusers_pndm(ours, 8)), x)[3])
    assert 1e-6 < difference < 1e-2


@pytest.mark.parametrize("n", [1, 2, 3])
def test_runge_kutta_runs_for_fewer_steps_than_diffusers_can(n: int) -> None:
    ours = PNDM(warmup="runge_kutta")
    with pytest.raises((ValueError, IndexError)):
        run_diffusers_pndm(diffusers_pndm(ours, n), draw(*SHAPE))
    calls: list[int] = []
    steps = run(ours, denoiser(calls=calls), draw(*SHAPE), ours.timesteps(SCHEDULE, n))
    assert len(steps) == n
    assert len(calls) == 4 * n - 3
    assert all(t >= 0 for t in calls)


def test_pndm_with_v_combines_eps_where_diffusers_combines_v() -> None:
    # A v of another timestep is another mixture of x_0 and noise, so combining v's is another method. Each
    # prediction becomes eps at its own timestep here, as CompVis's code does for v.
    ours = PNDM()
    x = draw(*SHAPE)
    predict = denoiser("v")
    pairs = ours.timesteps(SCHEDULE, 50)
    steps = run(ours, predict, x, pairs)
    theirs = run_diffusers_pndm(with_our_table(diffusers_pndm(ours, 50, "v")), x)
    assert error(steps[0].x, theirs[1]) > 1e-5

    def as_eps(x: Tensor, t: int) -> Tensor:
        return predict(x, t).eps

    with_eps = run_diffusers_pndm(with_our_table(diffusers_pndm(ours, 50)), x, as_eps)
    assert error(steps[-1].x, with_eps[-1]) < 1e-9


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_diffusers_pndm_steps_past_the_next_timestep_of_its_own_list(spacing: str) -> None:
    ours = PNDM(spacing=spacing)  # type: ignore[arg-type]
    x = draw(*SHAPE)
    theirs = run_diffusers_pndm(with_our_table(diffusers_pndm(ours, 30)), x)
    assert error(run(ours, denoiser(), x, ours.timesteps(SCHEDULE, 30))[-1].x, theirs[-1]) > 1e-4


def test_diffusers_img2img_skips_a_level_with_pndm() -> None:
    # Its list holds the second timestep twice, for the first step's second call. Cut in the middle, that
    # pair is gone: the first step's second call swallows the next timestep, and x lags one level behind.
    pairs = PNDM().timesteps(SCHEDULE, 10)
    t_start, to_run = truncate(pairs, 0.5)
    assert [t for t, _ in to_run] == [401, 301, 201, 101, 1]
    theirs = with_our_table(diffusers_pndm(PNDM(), 10))
    cut = theirs.timesteps.tolist()[10 - 5 :]
    assert cut == [501, 401, 301, 201, 101, 1]

    x = draw(*SHAPE)
    moved = x
    for t in cut[:2]:
        moved = theirs.step(network(moved, t), t, moved).prev_sample
    ours = PNDM().step(denoiser(), x, 501, 401, None, None)
    assert error(ours.x, moved) < 1e-9  # x is at 401 now, and the next call in the list is for 301
    assert cut[2] == 301
    assert t_start == 401
