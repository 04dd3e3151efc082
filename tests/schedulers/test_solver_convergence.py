"""The solvers against mathematics: their orders of convergence on data whose network is known exactly.

`test_convergence` explains the data. Spaced by their noise, the levels are smooth in the variable
that a solver integrates, and every solver has its order on SD1's own table of 1000 timesteps, whose clean end
holds spacings by timestep to first order. The error is that at timestep 0, where these runs end. All of it is
computed in float64: how near a measured order is to its bound is a property of the solver, not of rounding.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.convergence import (
    MU,
    STEPS,
    exact_flow,
    flow_error,
    gaussian_denoiser,
    moments,
    sd1_schedule,
    slope,
    smooth_schedule,
)

from ldm_core.noise_schedule import Denoiser, NoiseSchedule
from ldm_core.schedulers import LMS, DPMSolverMultistep, Euler, EulerAncestral, Heun, UniPC, truncate
from ldm_core.schedulers.lms import lagrange_weights
from ldm_core.schedulers.pndm import ADAMS_BASHFORTH
from ldm_core.schedulers.unipc import phi

SD1 = NoiseSchedule()
KARRAS: dict[str, Any] = {"spacing": "karras", "set_alpha_to_one": False}
LAMBDA: dict[str, Any] = {"spacing": "uniform_lambda", "set_alpha_to_one": False}
LINSPACE: dict[str, Any] = {"spacing": "linspace", "set_alpha_to_one": False}


def end_error(solver: Any, n: int, strength: float = 1.0, prediction: str = "eps") -> float:
    """Largest error at timestep 0 over the largest value, after n steps through SD1's table."""
    predict = gaussian_denoiser(SD1)
    if prediction == "v":
        predict_eps = predict
        predict = Denoiser(
            lambda x, t: SD1.v_from_eps_x0(predict_eps(x, t).eps, predict_eps(x, t).x0, t), SD1, "v"
        )
    t_start, pairs = truncate(solver.timesteps(SD1, n), strength)
    start = x = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(1, 1, 3, 3)
    history = None
    for t, t_prev in pairs:
        step = solver.step(predict, x, t, t_prev, history, None)
        x, history = step.x, step.history
    expected = exact_flow(SD1, start, t_start, 0)
    return float((x - expected).abs().max() / expected.abs().max())


# Measured in Karras's spacing: 1.00, 2.03, 2.04, 2.01, 3.04, 3.08, 4.00, 1.00, 1.98, 2.93 and 3.70. UniPC's
# corrector adds an order to its predictor's. LMS begins with a step of Euler's, which in the limit holds it
# to second order; at the noisy end that step's error is too small to be seen before order 4.
ORDERS = [
    (Euler(**KARRAS), 1, 0.05),
    (Heun(**KARRAS), 2, 0.1),
    (DPMSolverMultistep(**KARRAS), 2, 0.1),
    (UniPC(order=1, **KARRAS), 2, 0.1),
    (UniPC(**KARRAS), 3, 0.1),
    (UniPC(solver_type="bh1", **KARRAS), 3, 0.15),
    (UniPC(order=3, **KARRAS), 4, 0.1),
    (LMS(order=1, **KARRAS), 1, 0.05),
    (LMS(order=2, **KARRAS), 2, 0.1),
    (LMS(order=3, **KARRAS), 3, 0.15),
    (LMS(**KARRAS), 4, 0.4),
    # Measured: 1.00, 2.04, 2.01, 3.02 and 3.82.
    (Euler(**LAMBDA), 1, 0.05),
    (Heun(**LAMBDA), 2, 0.1),
    (DPMSolverMultistep(**LAMBDA), 2, 0.1),
    (UniPC(**LAMBDA), 3, 0.1),
    (UniPC(order=3, **LAMBDA), 4, 0.25),
]


@pytest.mark.one_in(2)
@pytest.mark.parametrize(("solver", "theory", "tolerance"), ORDERS)
def test_order_of_convergence_on_sd1s_own_table(solver: Any, theory: int, tolerance: float) -> None:
    errors = [end_error(solver, n) for n in STEPS]
    assert slope(STEPS, errors) == pytest.approx(theory, abs=tolerance)


# Whole timesteps of a table that is smooth in t. Measured: 1.00, 2.01, 2.16, 4.03, 1.97 and 2.84. (UniPC of
# order 2 is left out: its error, 1e-7, changes its sign there.)
@pytest.mark.parametrize(
    ("solver", "theory"),
    [
        (Euler(**LINSPACE), 1),
        (Heun(**LINSPACE), 2),
        (DPMSolverMultistep(**LINSPACE), 2),
        (UniPC(order=3, **LINSPACE), 4),
        (LMS(order=2, **LINSPACE), 2),
        (LMS(order=3, **LINSPACE), 3),
    ],
)
def test_order_of_convergence_over_whole_timesteps(solver: Any, theory: int) -> None:
    errors = [flow_error(solver, smooth_schedule(16_000), n) for n in STEPS]
    assert slope(STEPS, errors) == pytest.approx(theory, abs=0.2)


@pytest.mark.parametrize(("solver", "theory"), [(s, p) for s, p, _ in ORDERS[1:5]])
def test_an_img2img_start_between_two_levels_keeps_the_order(solver: Any, theory: int) -> None:
    # Every solver here knows its strides, so a first one of half the length costs nothing.
    errors = [end_error(solver, n, strength=(n * 3 // 4 + 0.5) / n) for n in STEPS]
    assert slope(STEPS, errors) == pytest.approx(theory, abs=0.3)


@pytest.mark.parametrize("solver", [s for s, _, _ in ORDERS[:5]])
def test_v_prediction_converges_alike(solver: Any) -> None:
    assert end_error(solver, 40, prediction="v") == pytest.approx(end_error(solver, 40), rel=1e-6)


def test_spacing_by_noise_rescues_the_order_that_the_clean_end_takes() -> None:
    by_timestep = [flow_error(DPMSolverMultistep(**LINSPACE), sd1_schedule(16_000), n) for n in STEPS]
    assert slope(STEPS, by_timestep) < 1.7
    assert end_error(DPMSolverMultistep(**KARRAS), 320) < by_timestep[-1]


# Exact mean and variance of the samples, the same on every processor. The last step gives the mean of x_0
# rather than a draw of it, and the ancestral variance is right in the limit: within 2 % over 1000 steps.
@pytest.mark.parametrize("c", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace", "karras"])
def test_ancestral_euler_has_the_datas_mean_and_variance(spacing: Any, c: float) -> None:
    coarse, fine = (moments(EulerAncestral(spacing=spacing), n, c) for n in (50, 1000))
    assert coarse[0] == pytest.approx(MU, abs=1e-12)
    assert fine[0] == pytest.approx(MU, abs=1e-12)
    assert fine[1] == pytest.approx(c * c, rel=0.02)
    assert abs(fine[1] - c * c) <= abs(coarse[1] - c * c) * (1 + 1e-9)


def test_lms_has_adams_bashforths_weights_for_equal_strides() -> None:
    for order in (1, 2, 3, 4):
        weights = lagrange_weights([float(k) for k in range(order)], 0.0, -1.0)
        assert weights == pytest.approx([-w for w in ADAMS_BASHFORTH[order - 1]], abs=1e-12)


def test_phi_is_the_same_by_its_series_and_by_its_recursion() -> None:
    for k in (1, 2, 3, 4):
        assert phi(k, -0.9999999) == pytest.approx(phi(k, -1.0000001), rel=1e-6)
        assert phi(k, 0.0) == pytest.approx([1, 1, 1 / 2, 1 / 6, 1 / 24][k], rel=1e-15)
