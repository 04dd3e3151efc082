"""The schedulers' steps: against diffusers, against CompVis's formulas, and what a pure step promises.

Every comparison drives both sides with one fixed network, and an error is the largest difference
over the largest value. diffusers computes in the latents' precision but for one place, its `alphas_cumprod`,
which is a float32 table: near t = 0 its 1 - alphas_cumprod has lost three digits. So with our float64 table
put in its place a step agrees to 1e-9 in float64 and 1e-6 in float32 (measured: to the bit), and with its
own table to 2e-6, of which all is the table's rounding.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, PNDMScheduler
from torch import Tensor

from ldm_core.noise_schedule import Denoiser, NoiseSchedule
from ldm_core.schedulers import DDIM, DDPM, PNDM, Scheduler, Step, ddim_update, from_diffusers, truncate

SCHEDULE = NoiseSchedule()
SHAPE = (2, 4, 8, 8)
SD1_BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PREDICTION_TYPE = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
ALL_SCHEDULERS: list[Any] = [
    DDIM(),
    DDIM(eta=0.5, spacing="trailing"),
    DDIM(eta=1.0, set_alpha_to_one=True),
    PNDM(),
    PNDM(warmup="runge_kutta"),
    DDPM(),
    DDPM(variance="fixed_large", spacing="linspace"),
]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def network(x: Tensor, t: int) -> Tensor:
    """A fixed network, shape to shape: nonlinear in x and in t, mixes channels and pixels of an image."""
    mixed = 0.9 * x - 0.7 * x.roll(1, dims=1) + 0.4 * x.roll(1, dims=3)
    return torch.tanh(mixed + math.sin(t / 150)) + x / 2


def denoiser(prediction: str = "eps", calls: list[int] | None = None) -> Denoiser:
    def function(x: Tensor, t: int) -> Tensor:
        if calls is not None:
            calls.append(t)
        return network(x, t)

    return Denoiser(function, SCHEDULE, prediction)  # type: ignore[arg-type]


def run(
    scheduler: Scheduler, predict: Denoiser, x: Tensor, pairs: Sequence[tuple[int, int]], seed: int = 100
) -> list[Step]:
    """Every step of a trajectory; step i is given the noise drawn with seed + i."""
    steps: list[Step] = []
    history = None
    for i, (t, t_prev) in enumerate(pairs):
        noise = draw(*x.shape, seed=seed + i, dtype=x.dtype)
        steps.append(scheduler.step(predict, x, t, t_prev, history, noise))
        x, history = steps[-1].x, steps[-1].history
    return steps


def error(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference over the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def with_our_table(theirs: Any, set_alpha_to_one: bool = False) -> Any:
    """diffusers' scheduler, computing in float64 throughout."""
    theirs.alphas_cumprod = SCHEDULE.alphas_cumprod
    theirs.final_alpha_cumprod = torch.ones((), dtype=torch.float64)
    if not set_alpha_to_one:
        theirs.final_alpha_cumprod = SCHEDULE.alphas_cumprod[0]
    return theirs


def with_tolerances(exact: Any, theirs: Any, prediction: str = "eps") -> list[tuple[Any, torch.dtype, float]]:
    """diffusers' scheduler with our table and with its own: (scheduler, the latents' dtype, tolerance).

    Of x_0, eps is (x - a x_0) / s: what rounding does to diffusers' a and s is divided by s, 0.03 at t = 0.
    """
    own = 2e-5 if prediction == "x0" else 2e-6
    return [(exact, torch.float64, 1e-9), (exact, torch.float32, 1e-6), (theirs, torch.float32, own)]


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
        assert error(steps[i].x, x_theirs) < (2e-5 if prediction == "x0" else 1e-5)


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


# --- k-diffusion's variables ---------------------------------------------------------------------------


def test_in_k_diffusions_variables_ddim_is_euler_and_eta_1_is_euler_ancestral() -> None:
    # k-diffusion integrates x / a over sigma = s / a, with the slope d = (x - denoised) / sigma.
    for t, t_prev in DDIM().timesteps(SCHEDULE, 10)[:-1]:
        (a, s), (a_prev, s_prev) = SCHEDULE.signal_and_noise(t), SCHEDULE.signal_and_noise(t_prev)
        sigma, sigma_next = s / a, s_prev / a_prev
        x, noise = draw(*SHAPE), draw(*SHAPE, seed=1)
        denoised = denoiser()(x, t).x0
        d = (x / a - denoised) / sigma

        euler = x / a + d * (sigma_next - sigma)
        assert error(DDIM().step(denoiser(), x, t, t_prev, None, None).x / a_prev, euler) < 1e-12

        sigma_up = (sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2) ** 0.5
        sigma_down = (sigma_next**2 - sigma_up**2) ** 0.5
        ancestral = x / a + d * (sigma_down - sigma) + noise * sigma_up
        assert error(DDIM(eta=1).step(denoiser(), x, t, t_prev, None, noise).x / a_prev, ancestral) < 1e-12


# --- what a pure step promises -------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", ALL_SCHEDULERS)
def test_a_replayed_step_gives_the_same_bits(scheduler: Any) -> None:
    x = draw(*SHAPE, dtype=torch.float32)
    pairs = scheduler.timesteps(SCHEDULE, 8)
    once, again = (run(scheduler, denoiser(), x, pairs) for _ in range(2))
    for a, b in zip(once, again, strict=True):
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.x0, b.x0)
    # From the middle, with the history of the first time.
    i = 5
    noise = draw(*SHAPE, seed=100 + i, dtype=torch.float32)
    replayed = scheduler.step(denoiser(), once[i - 1].x, *pairs[i], once[i - 1].history, noise)
    assert torch.equal(replayed.x, once[i].x)


@pytest.mark.parametrize("scheduler", ALL_SCHEDULERS)
def test_a_step_leaves_its_arguments_alone(scheduler: Any) -> None:
    x, history = draw(*SHAPE), None
    for i, (t, t_prev) in enumerate(scheduler.timesteps(SCHEDULE, 6)):
        arguments: list[Tensor] = [x, draw(*SHAPE, seed=i), *(history or ())]
        copies = [tensor.clone() for tensor in arguments]
        step = scheduler.step(denoiser(), x, t, t_prev, history, arguments[1])
        assert len(history or ()) == len(copies) - 2
        assert all(torch.equal(a, b) for a, b in zip(arguments, copies, strict=True))
        x, history = step.x, step.history


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("scheduler", ALL_SCHEDULERS)
def test_a_trajectory_keeps_its_dtype_and_stays_finite(scheduler: Any, dtype: torch.dtype) -> None:
    for step in run(scheduler, denoiser(), draw(*SHAPE, dtype=dtype), scheduler.timesteps(SCHEDULE, 8)):
        assert step.x.dtype == step.x0.dtype == dtype
        assert all(e.dtype == dtype for e in step.history or ())
        assert bool(step.x.isfinite().all())


@pytest.mark.parametrize("scheduler", ALL_SCHEDULERS)
def test_an_image_does_not_depend_on_its_batch(scheduler: Any) -> None:
    def alone(k: int) -> Tensor:
        image, history = x[k : k + 1], None
        for i, (t, t_prev) in enumerate(pairs):
            noise = draw(*x.shape, seed=100 + i)[k : k + 1]
            step = scheduler.step(denoiser(), image, t, t_prev, history, noise)
            image, history = step.x, step.history
        return image

    x, pairs = draw(3, 4, 8, 8), scheduler.timesteps(SCHEDULE, 8)
    together = run(scheduler, denoiser(), x, pairs)[-1].x
    for k in range(3):
        # Vectorised functions may round a short rest of an array differently; nothing else may differ.
        assert error(together[k : k + 1], alone(k)) < 1e-12


@pytest.mark.parametrize("scheduler", ALL_SCHEDULERS)
def test_a_scheduler_is_a_frozen_value_with_the_two_methods_of_the_seam(scheduler: Any) -> None:
    has_both_methods = isinstance(scheduler, Scheduler)
    assert has_both_methods
    assert replace(scheduler) == scheduler
    assert hash(replace(scheduler)) == hash(scheduler)
    with pytest.raises(FrozenInstanceError):
        scheduler.spacing = "leading"


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        (DDIM(), lambda n: n),
        (DDIM(eta=1.0), lambda n: n),
        (DDPM(), lambda n: n),
        (PNDM(), lambda n: n + 1 if n > 1 else 1),
        (PNDM(warmup="runge_kutta"), lambda n: n + 9 if n > 3 else 4 * n - 3),
    ],
)
def test_how_often_the_network_is_called(scheduler: Any, expected: Callable[[int], int]) -> None:
    for n in (1, 2, 3, 4, 5, 50):
        calls: list[int] = []
        run(scheduler, denoiser(calls=calls), draw(1, 4, 2, 2), scheduler.timesteps(SCHEDULE, n))
        assert len(calls) == expected(n)
    assert expected(50) == {"DDIM": 50, "DDPM": 50}.get(
        type(scheduler).__name__, 59 if scheduler == PNDM(warmup="runge_kutta") else 51
    )


def test_the_history_is_the_last_three_eps_newest_first() -> None:
    x, predict = draw(*SHAPE), denoiser()
    pairs = PNDM().timesteps(SCHEDULE, 6)
    steps = run(PNDM(), predict, x, pairs)
    eps = [network(x, t) for x, (t, _) in zip([x, *(step.x for step in steps)], pairs)]
    for i, step in enumerate(steps):
        expected = eps[max(0, i - 2) : i + 1][::-1]
        assert isinstance(step.history, tuple)
        assert len(step.history) == len(expected)
        assert all(torch.equal(a, b) for a, b in zip(step.history, expected))
    assert run(DDIM(), predict, x, pairs)[-1].history is None


@pytest.mark.parametrize("scheduler", [DDIM(eta=0.5), DDPM(), DDPM(variance="fixed_large")])
def test_a_step_that_adds_noise_says_when_there_is_none(scheduler: Any) -> None:
    x = draw(*SHAPE)
    with pytest.raises(ValueError, match="this step adds noise"):
        scheduler.step(denoiser(), x, 501, 401, None, None)
    with pytest.raises(ValueError, match=r"noise must have x's shape \(2, 4, 8, 8\), got \(1, 4, 8, 8\)"):
        scheduler.step(denoiser(), x, 501, 401, None, x[:1])


def test_deterministic_steps_ignore_noise() -> None:
    x = draw(*SHAPE)
    for scheduler in (DDIM(), PNDM()):
        with_noise, without = (
            scheduler.step(denoiser(), x, 501, 401, None, z) for z in (draw(*SHAPE, seed=9), None)
        )
        assert torch.equal(with_noise.x, without.x)


@pytest.mark.parametrize("eta", [-0.1, 1.5, float("nan")])
def test_an_eta_outside_its_range_is_an_error(eta: float) -> None:
    with pytest.raises(ValueError, match=r"eta must be in \[0, 1\]"):
        DDIM(eta=eta)


def test_unknown_variance_and_warmup_are_errors() -> None:
    with pytest.raises(ValueError, match="variance must be 'fixed_small' or 'fixed_large', not 'learned'"):
        DDPM(variance="learned")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="warmup must be 'plms' or 'runge_kutta', not 'euler'"):
        PNDM(warmup="euler")  # type: ignore[arg-type]


def test_a_timestep_outside_the_table_is_an_error() -> None:
    x = draw(*SHAPE)
    for scheduler in ALL_SCHEDULERS:
        with pytest.raises(ValueError, match="timestep 1000 is outside the table"):
            scheduler.step(denoiser(), x, 1000, 980, None, x)


def test_only_eta_0_runs_backwards() -> None:
    # DDIM inversion: the same eps up and down again is the identity.
    x, eps = draw(*SHAPE), draw(*SHAPE, seed=1)
    predict = Denoiser(lambda x, t: eps, SCHEDULE)
    up = DDIM().step(predict, x, 401, 501, None, None).x
    assert error(DDIM().step(predict, up, 501, 401, None, None).x, x) < 1e-12
    with pytest.raises(ValueError, match="only eta=0 can run backwards"):
        DDIM(eta=0.5).step(predict, x, 401, 501, None, eps)
    with pytest.raises(ValueError, match="earlier timestep, got t=401 and t_prev=501"):
        DDPM().step(predict, x, 401, 501, None, eps)


def test_ddim_update_of_the_truth_is_the_truth() -> None:
    # Whatever the stride, from the true x_0 and eps the update gives the true x_{t_prev}.
    x0, eps = draw(*SHAPE), draw(*SHAPE, seed=1)
    for t, t_prev in ((999, 979), (999, 0), (1, 0), (500, 499)):
        assert error(ddim_update(SCHEDULE, x0, eps, t, t_prev), SCHEDULE.add_noise(x0, eps, t_prev)) < 1e-12
    assert torch.equal(ddim_update(SCHEDULE, x0, eps, 20, -1, set_alpha_to_one=True), x0)
    assert error(ddim_update(SCHEDULE, x0, eps, 20, -1), SCHEDULE.add_noise(x0, eps, 0)) < 1e-12


def test_schedulers_work_from_pure_noise_with_v_and_say_where_they_cannot() -> None:
    # A schedule that ends in pure noise (alphas_cumprod = 0), as Lin et al. 2024 rescale theirs to do.
    schedule = NoiseSchedule(betas=torch.cat([SCHEDULE.betas[:-1], torch.ones(1, dtype=torch.float64)]))
    x, predict = draw(*SHAPE), Denoiser(network, schedule, "v")
    for scheduler in (DDIM(spacing="trailing"), DDIM(eta=1.0, spacing="trailing"), DDPM(spacing="trailing")):
        pairs = scheduler.timesteps(schedule, 10)
        assert pairs[0][0] == 999
        assert bool(run(scheduler, predict, x, pairs)[-1].x.isfinite().all())
    with pytest.raises(ValueError, match="eps does not determine x0 at timestep 999"):
        PNDM(spacing="trailing").step(predict, x, 999, 899, None, None)


# --- The settings of a diffusers folder ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [
        (DDIMScheduler(**SD1_BETAS, clip_sample=False), DDIM(set_alpha_to_one=True, steps_offset=0)),
        (
            DDIMScheduler(
                **SD1_BETAS,
                clip_sample=False,
                set_alpha_to_one=False,
                steps_offset=1,
                timestep_spacing="trailing",
            ),
            DDIM(spacing="trailing"),
        ),
        (PNDMScheduler(**SD1_BETAS, skip_prk_steps=True, steps_offset=1), PNDM()),
        (PNDMScheduler(**SD1_BETAS), PNDM(warmup="runge_kutta", steps_offset=0)),
        (DDPMScheduler(**SD1_BETAS, clip_sample=False), DDPM()),
        (
            DDPMScheduler(**SD1_BETAS, clip_sample=False, variance_type="fixed_large"),
            DDPM(variance="fixed_large"),
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_folders_scheduler_is_ours_with_its_settings(theirs: Any, expected: Any, tmp_path: Path) -> None:
    """Both from the whole file that diffusers writes, and from one that leaves its defaults out."""
    theirs.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert from_diffusers(written) == expected
    theirs.set_timesteps(20)
    if not isinstance(expected, PNDM):  # whose list has the steps of its warm-up, too
        assert [t for t, _ in expected.timesteps(SCHEDULE, 20)] == theirs.timesteps.tolist()
    defaults = type(theirs)()
    defaults.register_to_config(clip_sample=False)
    short = {k: v for k, v in dict(theirs.config).items() if v != getattr(defaults.config, k, None)}
    clip = {"clip_sample": False} if not isinstance(expected, PNDM) else {}
    assert from_diffusers({"_class_name": type(theirs).__name__, **short, **clip}) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"_class_name": "DEISMultistepScheduler"}, "'DEISMultistepScheduler' is not known here"),
        ({}, "None is not known here"),
        ({"_class_name": "DDIMScheduler"}, "clip_sample is True"),
        ({"_class_name": "PNDMScheduler", "timestep_spacing": "log"}, "log"),
        ({"_class_name": "DDPMScheduler", "clip_sample": False, "variance_type": "learned"}, "learned"),
        ({"_class_name": "PNDMScheduler", "steps_offset": "one"}, "one|wrong type"),
    ],
)
def test_a_folders_scheduler_that_is_not_ours(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_diffusers(settings)
