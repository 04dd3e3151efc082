"""DDIM and PLMS against CompVis's own formulas, transcribed into numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.scheduler_runs import SCHEDULE, SHAPE, denoiser, draw, error, network, run

from ldm_core.schedulers import DDIM, PNDM

# --- CompVis's own formulas, transcribed into numpy ----------------------------------------------------


class CompVisSampler:
    """`make_ddim_sampling_parameters`, `p_sample_ddim` and `p_sample_plms`, line by line, in float64."""

    def __init__(self, n: int, eta: float = 0.0) -> None:
        c = 1000 // n
        self.ddim_timesteps = np.asarray(list(range(0, 1000, c))) + 1
        betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=np.float64) ** 2
        alphacums = np.cumprod(1.0 - betas, axis=0)
        self.alphas = alphacums[self.ddim_timesteps]
        self.alphas_prev = np.asarray([alphacums[0], *alphacums[self.ddim_timesteps[:-1]].tolist()])
        self.sigmas = eta * np.sqrt(
            (1 - self.alphas_prev) / (1 - self.alphas) * (1 - self.alphas / self.alphas_prev)
        )
        self.calls = 0

    def model(self, x: np.ndarray, t: int) -> np.ndarray:
        self.calls += 1
        return network(torch.from_numpy(x), int(t)).numpy()

    def x_prev_and_pred_x0(self, x: np.ndarray, e_t: np.ndarray, index: int, noise: Any) -> tuple[Any, Any]:
        a_t, a_prev, sigma_t = self.alphas[index], self.alphas_prev[index], self.sigmas[index]
        pred_x0 = (x - np.sqrt(1.0 - a_t) * e_t) / np.sqrt(a_t)
        dir_xt = np.sqrt(1.0 - a_prev - sigma_t**2) * e_t
        return np.sqrt(a_prev) * pred_x0 + dir_xt + sigma_t * noise, pred_x0

    def ddim_sampling(self, x: np.ndarray, noises: list[np.ndarray]) -> list[tuple[Any, Any]]:
        out = []
        for i, step in enumerate(np.flip(self.ddim_timesteps)):
            index = len(self.ddim_timesteps) - i - 1
            out.append(self.x_prev_and_pred_x0(x, self.model(x, step), index, noises[i]))
            x = out[-1][0]
        return out

    def plms_sampling(self, x: np.ndarray) -> list[tuple[Any, Any]]:
        out: list[tuple[Any, Any]] = []
        old_eps: list[np.ndarray] = []
        time_range = np.flip(self.ddim_timesteps)
        for i, step in enumerate(time_range):
            index = len(time_range) - i - 1
            t_next = time_range[min(i + 1, len(time_range) - 1)]
            e_t = self.model(x, step)
            if len(old_eps) == 0:
                x_prev, _ = self.x_prev_and_pred_x0(x, e_t, index, 0)
                e_t_prime = (e_t + self.model(x_prev, t_next)) / 2
            elif len(old_eps) == 1:
                e_t_prime = (3 * e_t - old_eps[-1]) / 2
            elif len(old_eps) == 2:
                e_t_prime = (23 * e_t - 16 * old_eps[-1] + 5 * old_eps[-2]) / 12
            else:
                e_t_prime = (55 * e_t - 59 * old_eps[-1] + 37 * old_eps[-2] - 9 * old_eps[-3]) / 24
            out.append(self.x_prev_and_pred_x0(x, e_t_prime, index, 0))
            x = out[-1][0]
            old_eps.append(e_t)
            if len(old_eps) >= 4:
                old_eps.pop(0)
        return out


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
