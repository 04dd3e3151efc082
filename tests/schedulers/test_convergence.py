"""The schedulers against mathematics: on Gaussian data the network, and the right answer, are known exactly.

For x_0 ~ N(mu, c^2) in every pixel, x_t ~ N(a_t mu, a_t^2 c^2 + s_t^2), and the best possible prediction is
eps = s_t (x - a_t mu) / (a_t^2 c^2 + s_t^2). The probability-flow ODE, which deterministic schedulers
integrate, keeps (x_t - a_t mu) / std_t constant; ancestral schedulers must end in N(mu, c^2).

Orders are measured as slopes of log error over log n, on fine tables (thousands of training timesteps), so
that n divides them and the rounding of timesteps plays no part; `linspace` runs from the table's one end to
its other, and the last step, from 0 to alphas_cumprod[0], is then the identity.
"""

from __future__ import annotations

import math
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from support.convergence import (
    MU,
    STEPS,
    C,
    exact_flow,
    flow_error,
    gaussian_denoiser,
    gaussian_std,
    linear_sigma_schedule,
    moments,
    order,
    sd1_schedule,
    slope,
    smooth_schedule,
)

from ldm_core.noise_schedule import NoiseSchedule
from ldm_core.schedulers import DDIM, DDPM, PNDM

EULER = DDIM(spacing="linspace")
PLMS = PNDM(spacing="linspace")
RUNGE_KUTTA = PNDM(warmup="runge_kutta", spacing="linspace")


# --- order of convergence ------------------------------------------------------------------------------


@pytest.mark.parametrize(("scheduler", "theory"), [(EULER, 1), (PLMS, 2), (RUNGE_KUTTA, 2)])
def test_order_of_convergence(scheduler: Any, theory: int) -> None:
    # Measured: 1.00, 2.00 and 2.01. DDIM's update with a combined eps is of second order at most (Liu et al.
    # 2022), because the weights are those for equal strides of the variable it integrates, and s_t / a_t is
    # not linear in t.
    assert order(scheduler, smooth_schedule(16_000), STEPS) == pytest.approx(theory, abs=0.1)


@pytest.mark.parametrize(("scheduler", "theory"), [(EULER, 1), (PLMS, 2), (RUNGE_KUTTA, 2)])
def test_an_img2img_start_between_two_levels_keeps_the_order(scheduler: Any, theory: int) -> None:
    # The first stride is half as long as the others, which the multistep weights know nothing of.
    errors = [flow_error(scheduler, smooth_schedule(16_000), n, strides=n * 3 // 4 + 0.5) for n in STEPS]
    assert slope(STEPS, errors) == pytest.approx(theory, abs=0.1)


@pytest.mark.parametrize(("scheduler", "theory"), [(EULER, 1), (RUNGE_KUTTA, 4)])
def test_the_weights_reach_their_classical_order_where_sigma_is_linear_in_t(
    scheduler: Any, theory: int
) -> None:
    # Adams-Bashforth's own order, 4, which a single wrong weight would bring down. Measured: 1.00 and 3.97.
    assert order(scheduler, linear_sigma_schedule(7680), STEPS) == pytest.approx(theory, abs=0.1)


def test_plms_is_held_to_third_order_by_its_first_two_steps() -> None:
    # Improved Euler and second-order Adams-Bashforth each leave an error of h^3, once. Measured: 3.2.
    measured = order(PLMS, linear_sigma_schedule(7680), (320, 640, 1280))
    assert 2.9 < measured < 3.4


def test_the_clean_end_of_sd1s_schedule_lowers_every_order() -> None:
    # s_t grows like sqrt(t) from t = 0: the last strides hold an error of order h, whatever the method.
    # What higher order buys there is a smaller error, not a faster decay.
    schedule = sd1_schedule(16_000)
    assert 0.8 < order(EULER, schedule, STEPS) < 1.0
    assert 1.0 < order(PLMS, schedule, STEPS) < 1.3
    assert flow_error(PLMS, schedule, 40) < flow_error(EULER, schedule, 40) / 4


def test_fifty_steps_of_sd1s_own_table_end_near_the_exact_answer() -> None:
    # The defaults as they are used: 1000 training timesteps, leading spacing, the last alpha of CompVis.
    schedule = NoiseSchedule()

    def error(scheduler: Any, n: int) -> float:
        pairs = scheduler.timesteps(schedule, n)
        start = x = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(1, 1, 3, 3)
        history = None
        for t, t_prev in pairs:
            step = scheduler.step(gaussian_denoiser(schedule), x, t, t_prev, history, None)
            x, history = step.x, step.history
        return float((x - exact_flow(schedule, start, pairs[0][0], 0)).abs().max())

    plms, ddim = error(PNDM(), 50), error(DDIM(), 50)
    assert plms < ddim / 3
    assert ddim < 0.1
    assert error(PNDM(warmup="runge_kutta"), 50) == pytest.approx(plms, rel=0.05)


def test_the_table_in_the_docs_is_what_its_script_measures() -> None:
    docs = Path(__file__).parents[2] / "docs"
    script = runpy.run_path(str(docs / "figures" / "schedulers.py"))
    assert "\n".join(script["table"]()) in (docs / "schedulers.md").read_text(encoding="utf-8")


# --- distribution --------------------------------------------------------------------------------------


# Moments are computed exactly, in float64: a variance is as near to its bound on every processor.
@pytest.mark.parametrize("c", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(
    "scheduler", [DDPM(), DDPM(variance="fixed_large"), DDIM(eta=1.0, set_alpha_to_one=True)]
)
def test_ancestral_sampling_has_the_datas_mean_and_variance(scheduler: Any, c: float) -> None:
    # The mean is exact for every n. Neither fixed variance is that of the true reverse step for c in general,
    # so the variance is right in the limit: within 2 % over all 1000 steps, and nearer than with 50.
    coarse, fine = moments(scheduler, 50, c), moments(scheduler, 1000, c)
    assert coarse[0] == pytest.approx(MU, abs=1e-12)
    assert fine[0] == pytest.approx(MU, abs=1e-12)
    assert fine[1] == pytest.approx(c * c, rel=0.02)
    assert abs(fine[1] - c * c) <= abs(coarse[1] - c * c) * (1 + 1e-9)


@pytest.mark.parametrize("n", [10, 50, 1000])
def test_the_large_variance_is_exact_for_standard_normal_data(n: int) -> None:
    # Ho et al. 2020, section 3.2. Every step but the last keeps x ~ N(., 1); the last gives the mean of x_0
    # rather than a draw of it, which for c = 1 takes alphas_cumprod[0] of the variance.
    _, variance = moments(DDPM(variance="fixed_large"), n, c=1.0)
    assert variance == pytest.approx(NoiseSchedule().alpha_cumprod(0), rel=1e-9)


@pytest.mark.parametrize("n", [10, 50, 1000])
def test_the_small_variance_is_exact_for_a_single_point(n: int) -> None:
    # Ho et al. 2020, section 3.2: with c = 0 the posterior's x_0 is the true one.
    mean, variance = moments(DDPM(), n, c=0.0)
    assert mean == pytest.approx(MU, abs=1e-12)
    assert variance == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize("scheduler", [DDPM(), DDPM(variance="fixed_large"), DDIM(eta=1.0)])
def test_samples_drawn_over_the_whole_chain_have_the_right_moments(scheduler: Any) -> None:
    # 10,000 scalar samples: the standard error of the mean is c / 100, that of the variance
    # c^2 sqrt(2 / 10000). Five of each, on top of the 2 % that the fixed variances are off.
    samples = 10_000
    schedule = NoiseSchedule()
    generator = torch.Generator().manual_seed(0)
    pairs = scheduler.timesteps(schedule, 1000)
    x = torch.randn(samples, generator=generator)
    x = schedule.signal_and_noise(999)[0] * MU + gaussian_std(schedule, 999) * x
    for t, t_prev in pairs:
        noise = torch.randn(samples, generator=generator)
        x = scheduler.step(gaussian_denoiser(schedule), x, t, t_prev, None, noise).x
    assert float(x.mean()) == pytest.approx(MU, abs=5 * C / math.sqrt(samples))
    assert float(x.var()) == pytest.approx(C * C, rel=0.02 + 5 * math.sqrt(2 / samples))
