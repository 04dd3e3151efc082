"""DDIM's and DDPM's steps against diffusers' (PNDM's are in `test_pndm`).

Every comparison drives both sides with one fixed network, and an error is the largest difference
over the largest value. diffusers computes in the latents' precision but for one place, its `alphas_cumprod`,
which is a float32 table: near t = 0 its 1 - alphas_cumprod has lost three digits. So with our float64 table
put in its place a step agrees to 1e-9 in float64 and 1e-6 in float32 (measured: to the bit), and with its
own table to 5e-6 (2e-5 if the network predicts x0), of which all is the table's rounding.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
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

from ldm_core.schedulers import DDIM, DDPM

# --- DDIM against diffusers ----------------------------------------------------------------------------


def diffusers_ddim(ours: DDIM, n: int, prediction: str = "eps", clip_sample: bool = False) -> Any:
    theirs: Any = DDIMScheduler(
        **SD1_BETAS,
        clip_sample=clip_sample,
        set_alpha_to_one=ours.set_alpha_to_one,
        steps_offset=ours.steps_offset,
        timestep_spacing=ours.spacing,
        prediction_type=PREDICTION_TYPE[prediction],
    )
    theirs.set_timesteps(n)
    return theirs


DDIM_CASES = [
    (n, DDIM(eta=eta, spacing=spacing, set_alpha_to_one=to_one))
    for n in (1, 10, 50)
    for eta in (0.0, 0.5, 1.0)
    for spacing in ("leading", "trailing")
    for to_one in (False, True)
] + [(n, DDIM(eta=0.5)) for n in (7, 30, 999)]


@pytest.mark.one_in(4)
@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
@pytest.mark.parametrize(("n", "ours"), DDIM_CASES)
def test_every_ddim_step_is_diffusers(n: int, ours: DDIM, prediction: str) -> None:
    theirs = diffusers_ddim(ours, n, prediction)
    exact = with_our_table(diffusers_ddim(ours, n, prediction), ours.set_alpha_to_one)
    predict = denoiser(prediction)
    pairs = ours.timesteps(SCHEDULE, n)
    assert [t for t, _ in pairs] == theirs.timesteps.tolist()
    for i, (t, t_prev) in enumerate(pairs[:: max(1, n // 50)]):
        for reference, dtype, tolerance in with_tolerances(exact, theirs, prediction):
            x, noise = draw(*SHAPE, seed=i, dtype=dtype), draw(*SHAPE, seed=1000 + i, dtype=dtype)
            step = ours.step(predict, x, t, t_prev, None, noise)
            expected = reference.step(network(x, t), t, x, eta=ours.eta, variance_noise=noise)
            assert error(step.x, expected.prev_sample) < tolerance
            assert error(step.x0, expected.pred_original_sample) < tolerance


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_ddim_trajectory_of_50_steps_is_diffusers(eta: float, prediction: str) -> None:
    ours = DDIM(eta=eta)
    theirs = diffusers_ddim(ours, 50, prediction)
    x = x_theirs = draw(*SHAPE, dtype=torch.float32)
    steps = run(ours, denoiser(prediction), x, ours.timesteps(SCHEDULE, 50))
    for i, t in enumerate(theirs.timesteps.tolist()):
        noise = draw(*SHAPE, seed=100 + i, dtype=torch.float32)
        output = network(x_theirs, t)
        x_theirs = theirs.step(output, t, x_theirs, eta=eta, variance_noise=noise).prev_sample
        assert error(steps[i].x, x_theirs) < (4e-5 if prediction == "x0" else 1e-5)


def ddim_differs(ours: DDIM, n: int, **settings: Any) -> list[int]:
    """The timesteps at which one step from the same x differs by more than rounding."""
    theirs = with_our_table(diffusers_ddim(ours, n, **settings), ours.set_alpha_to_one)
    different = []
    x = draw(*SHAPE)
    for t, t_prev in ours.timesteps(SCHEDULE, n):
        step = ours.step(denoiser(), x, t, t_prev, None, None)
        if error(step.x, theirs.step(network(x, t), t, x).prev_sample) > 1e-6:
            different.append(t)
    return different


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_diffusers_ddim_steps_past_the_next_timestep_of_its_own_list(spacing: str) -> None:
    # It always steps by T // n, whatever the next timestep in its list is; ours goes to the next timestep.
    ours = DDIM(spacing=spacing)  # type: ignore[arg-type]
    different = ddim_differs(ours, 30)
    expected = [t for t, t_prev in ours.timesteps(SCHEDULE, 30) if t_prev != max(t - 1000 // 30, -1)]
    assert different == expected
    assert len(expected) >= 10


def test_diffusers_ddim_defaults_end_elsewhere_and_clip() -> None:
    assert ddim_differs(DDIM(), 10) == []
    theirs: Any = DDIMScheduler(**SD1_BETAS)  # set_alpha_to_one=True, steps_offset=0, clip_sample=True
    theirs.set_timesteps(10)
    assert theirs.timesteps.tolist() == [t - 1 for t, _ in DDIM().timesteps(SCHEDULE, 10)]

    t, t_prev = DDIM().timesteps(SCHEDULE, 10)[-1]
    x = draw(*SHAPE)
    to_first = DDIM().step(denoiser(), x, t, t_prev, None, None)
    to_one = DDIM(set_alpha_to_one=True).step(denoiser(), x, t, t_prev, None, None)
    assert torch.equal(to_one.x, to_one.x0)
    assert 1e-3 < error(to_first.x, to_one.x) < 0.1

    assert ddim_differs(DDIM(), 10, clip_sample=True) != []


# --- DDPM against diffusers ----------------------------------------------------------------------------


def diffusers_ddpm(ours: DDPM, n: int, prediction: str = "eps") -> Any:
    theirs: Any = DDPMScheduler(
        **SD1_BETAS,
        clip_sample=False,
        variance_type=ours.variance,
        steps_offset=ours.steps_offset,
        timestep_spacing=ours.spacing,
        prediction_type=PREDICTION_TYPE[prediction],
    )
    theirs.set_timesteps(n)
    return theirs


DDPM_CASES = [
    (n, DDPM(variance=variance, spacing=spacing))
    for n in (10, 30, 50)
    for variance in ("fixed_small", "fixed_large")
    for spacing in ("leading", "trailing", "linspace")
] + [(1000, DDPM(variance="fixed_small")), (1000, DDPM(variance="fixed_large"))]


def last_step_of_diffusers_adds_noise(t: int, t_prev: int) -> bool:
    return t_prev == -1 and t > 0


@pytest.mark.one_in(4)
@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
@pytest.mark.parametrize(("n", "ours"), DDPM_CASES)
def test_every_ddpm_step_is_diffusers(n: int, ours: DDPM, prediction: str) -> None:
    theirs = diffusers_ddpm(ours, n, prediction)
    exact = with_our_table(diffusers_ddpm(ours, n, prediction))
    predict = denoiser(prediction)
    pairs = ours.timesteps(SCHEDULE, n)
    assert [t for t, _ in pairs] == theirs.timesteps.tolist()
    stride = max(1, n // 50)
    for i, (t, t_prev) in enumerate([*pairs[:-1:stride], pairs[-1]]):
        if last_step_of_diffusers_adds_noise(t, t_prev):
            continue
        for reference, dtype, tolerance in with_tolerances(exact, theirs, prediction):
            x = draw(*SHAPE, seed=i, dtype=dtype)
            noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(i), dtype=dtype)
            step = ours.step(predict, x, t, t_prev, None, noise)
            generator = torch.Generator().manual_seed(i)
            expected = reference.step(network(x, t), t, x, generator=generator)
            assert error(step.x, expected.prev_sample) < tolerance
            assert error(step.x0, expected.pred_original_sample) < tolerance


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("n", [50, 1000])
def test_a_ddpm_trajectory_is_diffusers(n: int, variance: str) -> None:
    ours = DDPM(variance=variance)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(3)
    theirs = with_our_table(diffusers_ddpm(ours, n))
    x_theirs = x = draw(*SHAPE)
    for t in theirs.timesteps.tolist():
        x_theirs = theirs.step(network(x_theirs, t), t, x_theirs, generator=generator).prev_sample
    generator.manual_seed(3)
    for t, t_prev in ours.timesteps(SCHEDULE, n):
        noise = torch.randn(SHAPE, generator=generator, dtype=x.dtype)
        x = ours.step(denoiser(), x, t, t_prev, None, noise).x
    assert error(x, x_theirs) < 1e-9


def test_diffusers_ddpm_adds_noise_at_a_last_step_that_does_not_start_at_0() -> None:
    # Algorithm 2 of the paper ends without noise. diffusers decides by t > 0 rather than by being the last,
    # so that with an offset or trailing spacing it ends with a draw: of 1e-10 with the small variance, which
    # it clamps to 1e-20, and of sqrt(beta) with the large one.
    def last_step(variance: str) -> tuple[Tensor, Tensor, float]:
        ours = DDPM(variance=variance, spacing="trailing")  # type: ignore[arg-type]
        t, t_prev = ours.timesteps(SCHEDULE, 50)[-1]
        assert (t, t_prev) == (19, -1)
        x = draw(*SHAPE)
        step = ours.step(denoiser(), x, t, t_prev, None, None)
        assert torch.equal(step.x, step.x0)
        theirs = with_our_table(diffusers_ddpm(ours, 50))
        generator = torch.Generator().manual_seed(0)
        expected = theirs.step(network(x, t), t, x, generator=generator).prev_sample
        noise = torch.randn(SHAPE, generator=generator.manual_seed(0), dtype=x.dtype)
        return (expected - step.x), noise, 1 - SCHEDULE.alpha_cumprod(t)

    difference, noise, beta = last_step("fixed_large")
    torch.testing.assert_close(difference, math.sqrt(beta) * noise, rtol=0, atol=1e-12)
    difference, noise, _ = last_step("fixed_small")
    torch.testing.assert_close(difference, 1e-10 * noise, rtol=0, atol=1e-14)


def test_ddim_with_eta_1_is_ddpm_with_the_small_variance_given_the_same_noise() -> None:
    ddim, ddpm = DDIM(eta=1.0, set_alpha_to_one=True), DDPM(steps_offset=1)
    for n in (1, 10, 50, 1000):
        pairs = ddim.timesteps(SCHEDULE, n)
        assert pairs == ddpm.timesteps(SCHEDULE, n)
        ends = [run(scheduler, denoiser(), draw(*SHAPE), pairs)[-1].x for scheduler in (ddim, ddpm)]
        assert error(*ends) < 1e-11


def test_ddpm_over_all_timesteps_has_the_schedules_own_betas() -> None:
    # Equation 7 and the text below it in the original paper, for t -> t - 1, written with beta_t.
    x, noise = draw(*SHAPE), draw(*SHAPE, seed=1)
    alphas = 1 - SCHEDULE.betas
    for t in (1, 2, 500, 999):
        beta, alpha = float(SCHEDULE.betas[t]), float(alphas[t])
        bar, bar_prev = float(alphas[: t + 1].prod()), float(alphas[:t].prod())
        x0 = (x - math.sqrt(1 - bar) * network(x, t)) / math.sqrt(bar)
        mean = math.sqrt(bar_prev) * beta / (1 - bar) * x0 + math.sqrt(alpha) * (1 - bar_prev) / (1 - bar) * x
        small = (1 - bar_prev) / (1 - bar) * beta
        for variance, sigma2 in (("fixed_small", small), ("fixed_large", beta)):
            step = DDPM(variance=variance).step(denoiser(), x, t, t - 1, None, noise)  # type: ignore[arg-type]
            assert error(step.x, mean + math.sqrt(sigma2) * noise) < 1e-11
