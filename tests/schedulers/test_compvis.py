"""DDIM and PLMS against CompVis's own formulas, transcribed into numpy (`support.compvis`)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.compvis import CompVisSampler
from support.scheduler_runs import SCHEDULE, SHAPE, denoiser, draw, error, run

from ldm_core.schedulers import DDIM, PNDM

DIVISORS = [2, 4, 5, 8, 10, 20, 25, 40, 50, 100, 125, 200, 250, 500]


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("n", [1, *DIVISORS])
def test_default_ddim_is_compvis_wherever_n_divides_1000(n: int, eta: float) -> None:
    ours, x = DDIM(eta=eta), draw(*SHAPE)
    steps = run(ours, denoiser(), x, ours.timesteps(SCHEDULE, n))
    noises = [draw(*SHAPE, seed=100 + i).numpy() for i in range(n)]
    for step, (x_prev, pred_x0) in zip(
        steps, CompVisSampler(n, eta).ddim_sampling(x.numpy(), noises), strict=True
    ):
        assert error(step.x, torch.from_numpy(x_prev)) < 1e-9
        assert error(step.x0, torch.from_numpy(pred_x0)) < 1e-9


@pytest.mark.parametrize("n", DIVISORS)
def test_default_plms_is_compvis_wherever_n_divides_1000(n: int) -> None:
    ours, x = PNDM(), draw(*SHAPE)
    steps = run(ours, denoiser(), x, ours.timesteps(SCHEDULE, n))
    for step, (x_prev, pred_x0) in zip(steps, CompVisSampler(n).plms_sampling(x.numpy()), strict=True):
        assert error(step.x, torch.from_numpy(x_prev)) < 1e-9
        assert error(step.x0, torch.from_numpy(pred_x0)) < 1e-9


@pytest.mark.parametrize("n", [30, 70, 400])
def test_compvis_spacing_is_compvis_where_n_does_not_divide_1000(n: int) -> None:
    x = draw(*SHAPE)
    for ours, expected in (
        (DDIM(spacing="compvis"), CompVisSampler(n).ddim_sampling(x.numpy(), [np.zeros(SHAPE)] * 1000)),
        (PNDM(spacing="compvis"), CompVisSampler(n).plms_sampling(x.numpy())),
    ):
        steps = run(ours, denoiser(), x, ours.timesteps(SCHEDULE, n))
        assert len(steps) == len(expected) > n
        assert error(steps[-1].x, torch.from_numpy(expected[-1][0])) < 1e-9


def test_one_plms_step_is_plain_ddim_where_compvis_asks_twice_at_one_timestep() -> None:
    # The original's t_next is then t itself, though x_prev is already at the end: a second call at a
    # timestep that does not belong to its x. There is no next timestep to ask at, so ours is DDIM's step.
    x, calls = draw(*SHAPE), []  # type: ignore[var-annotated]
    (pair,) = PNDM().timesteps(SCHEDULE, 1)
    step = PNDM().step(denoiser(calls=calls), x, *pair, None, None)
    assert calls == [1]
    assert torch.equal(step.x, DDIM().step(denoiser(), x, *pair, None, None).x)
    compvis = CompVisSampler(1)
    ((x_prev, _),) = compvis.plms_sampling(x.numpy())
    assert compvis.calls == 2
    assert error(step.x, torch.from_numpy(x_prev)) > 1e-6
