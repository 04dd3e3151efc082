"""DPM-Solver++, UniPC, Euler, ancestral Euler, Heun and LMS: the contract of schedulers, and folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    UniPCMultistepScheduler,
)
from support.scheduler_runs import SCHEDULE, SD1_BETAS, SHAPE, denoiser, draw, error, network, run

from ldm_core.noise_schedule import Denoiser, NoiseSchedule
from ldm_core.schedulers import (
    DDIM,
    LMS,
    DPMSolverMultistep,
    Euler,
    EulerAncestral,
    Heun,
    Scheduler,
    UniPC,
    from_diffusers,
    solver_pairs,
    truncate,
)
from ldm_core.testing import check_scheduler

SOLVERS: list[Any] = [
    DPMSolverMultistep(),
    DPMSolverMultistep(spacing="karras"),
    DPMSolverMultistep(spacing="exponential", set_alpha_to_one=False, lower_order_final=False),
    DPMSolverMultistep(order=1, spacing="linspace", skip_last=True),
    UniPC(),
    UniPC(spacing="karras"),
    UniPC(order=3, spacing="uniform_lambda"),
    UniPC(order=1, solver_type="bh1", spacing="leading", set_alpha_to_one=False),
    Euler(),
    Euler(spacing="karras", set_alpha_to_one=False),
    EulerAncestral(),
    EulerAncestral(eta=0.5, spacing="karras"),
    Heun(),
    Heun(spacing="karras"),
    LMS(),
    LMS(order=2, spacing="karras"),
    LMS(spacing="linspace"),
]


# --- the contract of every scheduler ---------------------------------------------------------------------


@pytest.mark.one_in(3)
@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_the_solvers_keep_the_contract(solver: Any) -> None:
    steps = (1, 2, 7, 10, 50, 999) if getattr(solver, "skip_last", False) else (1, 2, 7, 10, 50, 1000)
    if getattr(solver, "skip_last", False):  # n + 1 of T timesteps leave room for T - 1 steps only
        with pytest.raises(ValueError, match=r"whole number in 1\.\.999, not 1000"):
            solver.timesteps(SCHEDULE, 1000)
    check_scheduler(solver, stochastic=isinstance(solver, EulerAncestral), steps=steps)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_replayed_step_gives_the_same_bits(solver: Any) -> None:
    x = draw(*SHAPE, dtype=torch.float32)
    pairs = solver.timesteps(SCHEDULE, 8)
    steps = run(solver, denoiser(), x, pairs)
    for i in (5, 2, 7):  # with the history of the first time, in another order
        noise = draw(*SHAPE, seed=100 + i, dtype=torch.float32)
        again = solver.step(denoiser(), steps[i - 1].x, *pairs[i], steps[i - 1].history, noise)
        assert torch.equal(again.x, steps[i].x)
        assert torch.equal(again.x0, steps[i].x0)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_solver_is_a_frozen_value(solver: Any) -> None:
    is_scheduler = isinstance(solver, Scheduler)
    assert is_scheduler
    assert hash(replace(solver)) == hash(solver)
    with pytest.raises(FrozenInstanceError):
        solver.spacing = "leading"


@pytest.mark.parametrize("solver", SOLVERS)
def test_how_often_the_network_is_called(solver: Any) -> None:
    for n in (1, 2, 5, 20):
        calls: list[int] = []
        run(solver, denoiser(calls=calls), draw(1, 4, 2, 2), solver.timesteps(SCHEDULE, n))
        assert len(calls) == (2 * n - 1 if isinstance(solver, Heun) else n)
        assert all(0 <= t <= 999 for t in calls)


@pytest.mark.parametrize("solver", SOLVERS)
def test_one_step_to_the_clean_image_is_the_predicted_image(solver: Any) -> None:
    # From any level: every one of them ends in Euler's step or DDIM's, which are one there.
    to_clean = replace(solver, set_alpha_to_one=True) if hasattr(solver, "set_alpha_to_one") else solver
    x = draw(*SHAPE)
    for t in (999, 437.25, 0):
        step = to_clean.step(denoiser(), x, t, -1, None, None)
        assert error(step.x, step.x0) < 1e-12
    ((t, t_prev),) = to_clean.timesteps(SCHEDULE, 1)
    expected = DDIM(set_alpha_to_one=True).step(denoiser(), x, t, t_prev, None, None).x
    assert error(to_clean.step(denoiser(), x, t, t_prev, None, None).x, expected) < 1e-12


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_first_order_is_ddim(prediction: str) -> None:
    x, ddim = draw(*SHAPE), DDIM(set_alpha_to_one=True)
    for solver in (Euler(), DPMSolverMultistep(order=1), LMS(order=1), EulerAncestral(eta=0)):
        pairs = solver.timesteps(SCHEDULE, 10)
        ends = [run(s, denoiser(prediction), x, pairs)[-1].x for s in (solver, ddim)]
        assert error(*ends) < 1e-12
    pairs = EulerAncestral().timesteps(SCHEDULE, 10)
    ancestral = DDIM(eta=1, set_alpha_to_one=True)
    ends = [run(s, denoiser(prediction), x, pairs)[-1].x for s in (EulerAncestral(), ancestral)]
    assert error(*ends) < 1e-11


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_network_that_predicts_v_gives_the_same_as_its_eps(solver: Any) -> None:
    predict_v = denoiser("v")
    predict_eps = Denoiser(lambda x, t: predict_v(x, t).eps, SCHEDULE)
    pairs = solver.timesteps(SCHEDULE, 6)
    ends = [run(solver, predict, draw(*SHAPE), pairs)[-1].x for predict in (predict_v, predict_eps)]
    assert error(*ends) < 1e-10


def test_from_pure_noise_with_v() -> None:
    # A table that ends in pure noise: lambda and sigma have no value there, x_0 has.
    schedule = NoiseSchedule(betas=torch.cat([SCHEDULE.betas[:-1], torch.ones(1, dtype=torch.float64)]))
    x, predict = draw(*SHAPE), Denoiser(network, schedule, "v")
    expected = DDIM().step(predict, x, 999, 899, None, None)
    for solver in (DPMSolverMultistep(), UniPC(), UniPC(order=3)):
        steps = run(solver, predict, x, solver.timesteps(schedule, 10))
        assert steps[0].history in (None, ())
        assert bool(steps[-1].x.isfinite().all())
        assert error(solver.step(predict, x, 999, 899, None, None).x, expected.x) < 1e-12
    for method in (Euler(), EulerAncestral(), Heun(), LMS()):
        with pytest.raises(ValueError, match="sigma = s / a is infinite at timestep 999"):
            method.step(predict, x, 999, 899, None, x)
    with pytest.raises(ValueError, match="'karras' spacing needs noise levels that are finite"):
        DPMSolverMultistep(spacing="karras").timesteps(schedule, 10)
    with pytest.raises(ValueError, match=r"timestep 998\.5 has no noise level"):
        schedule.alpha_cumprod(998.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DPMSolverMultistep(order=3), "order must be 1 or 2, not 3"),  # type: ignore[arg-type]
        (lambda: UniPC(order=4), "order must be 1, 2 or 3, not 4"),  # type: ignore[arg-type]
        (lambda: UniPC(solver_type="bh3"), "solver_type must be 'bh1' or 'bh2', not 'bh3'"),  # type: ignore[arg-type]
        (lambda: LMS(order=0), "order must be 1, 2, 3 or 4, not 0"),
        (lambda: EulerAncestral(eta=1.5), r"eta must be in \[0, 1\], not 1.5"),
        (lambda: Euler(spacing="beta"), "spacing must be one of leading, .* karras, .* not 'beta'"),  # type: ignore[arg-type]
        (lambda: Heun(steps_offset=-1), "steps_offset must be a whole number"),
        (lambda: DDIM(spacing="karras"), "spacing must be one of leading, trailing, linspace, compvis"),  # type: ignore[arg-type]
        (lambda: EulerAncestral().step(denoiser(), draw(*SHAPE), 5, 9, None, None), "t=5 and t_prev=9"),
        (lambda: EulerAncestral().step(denoiser(), draw(*SHAPE), 9, 5, None, None), "adds noise"),
        (lambda: Heun(spacing="karras").timesteps(SCHEDULE, 1001), r"1\.\.1000, not 1001"),
        (lambda: UniPC(spacing="karras").timesteps(SCHEDULE, 0), r"1\.\.1000, not 0"),
    ],
)
def test_settings_that_no_solver_has(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_unipcs_correction_leaves_alone_what_the_caller_changed() -> None:
    # Inpainting replaces a part of x between two steps; the corrector must not bring the old one back.
    solver, constant = UniPC(), draw(*SHAPE, seed=3)
    pairs = solver.timesteps(SCHEDULE, 10)
    first = solver.step(denoiser(), draw(*SHAPE), *pairs[0], None, None)
    (_, x0), changed = first.history[0], first.x + constant
    # A network that gives the x_0 it gave before has nothing to correct, whatever x is.
    schedule = SCHEDULE
    predict = Denoiser(lambda x, t: schedule.eps_from_x0(x, x0, t), schedule)
    plain = DDIM().step(predict, changed, *pairs[1], None, None)
    assert error(solver.step(predict, changed, *pairs[1], first.history, None).x, plain.x) < 1e-10


# --- the settings of a diffusers folder ------------------------------------------------------------------

FOLDERS: list[tuple[Any, Any]] = [
    (
        DPMSolverMultistepScheduler(**SD1_BETAS),
        DPMSolverMultistep(spacing="linspace", steps_offset=0, skip_last=True),
    ),
    (
        DPMSolverMultistepScheduler(**SD1_BETAS, timestep_spacing="leading", steps_offset=1),
        DPMSolverMultistep(spacing="leading", skip_last=True),
    ),
    (
        DPMSolverMultistepScheduler(
            **SD1_BETAS, timestep_spacing="trailing", solver_order=1, final_sigmas_type="sigma_min"
        ),
        DPMSolverMultistep(order=1, steps_offset=0, set_alpha_to_one=False),
    ),
    (
        UniPCMultistepScheduler(**SD1_BETAS, solver_order=3, solver_type="bh1", lower_order_final=False),
        UniPC(
            order=3,
            solver_type="bh1",
            spacing="linspace",
            steps_offset=0,
            skip_last=True,
            lower_order_final=False,
        ),
    ),
    (EulerDiscreteScheduler(**SD1_BETAS, timestep_spacing="trailing"), Euler(steps_offset=0)),
    (
        EulerDiscreteScheduler(**SD1_BETAS, timestep_spacing="leading", steps_offset=1),
        Euler(spacing="leading"),
    ),
    (
        EulerAncestralDiscreteScheduler(**SD1_BETAS, timestep_spacing="leading"),
        EulerAncestral(spacing="leading", steps_offset=0),
    ),
    (HeunDiscreteScheduler(**SD1_BETAS, timestep_spacing="trailing"), Heun(steps_offset=0)),
    (LMSDiscreteScheduler(**SD1_BETAS, timestep_spacing="trailing"), LMS(steps_offset=0)),
]


@pytest.mark.parametrize(("theirs", "expected"), FOLDERS, ids=lambda value: type(value).__name__)
def test_a_folders_solver_is_ours_with_its_settings(theirs: Any, expected: Any, tmp_path: Path) -> None:
    theirs.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert from_diffusers(written) == expected
    defaults = dict(type(theirs)().config)
    short = {k: v for k, v in dict(theirs.config).items() if v != defaults.get(k)}
    assert from_diffusers({"_class_name": type(theirs).__name__, **short}) == expected
    theirs.set_timesteps(20)
    timesteps = theirs.timesteps.tolist()
    if isinstance(expected, Heun):
        timesteps = timesteps[:1] + timesteps[1::2]
    assert [t for t, _ in expected.timesteps(SCHEDULE, 20)] == timesteps


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True}, "karras"),
        ({"_class_name": "DPMSolverMultistepScheduler", "use_lu_lambdas": True}, "uniform_lambda"),
        ({"_class_name": "UniPCMultistepScheduler", "use_exponential_sigmas": True}, "exponential"),
        ({"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True}, "karras"),
        ({"_class_name": "EulerDiscreteScheduler"}, "linspace"),
        ({"_class_name": "LMSDiscreteScheduler", "use_exponential_sigmas": True}, "exponential"),
    ],
)
def test_a_folders_spacing_by_sigma(settings: dict[str, Any], expected: str) -> None:
    assert from_diffusers(settings).spacing == expected  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "DPMSolverMultistep",
            {"algorithm_type": "sde-dpmsolver++"},
            "algorithm_type is 'sde-dpmsolver\\+\\+'",
        ),
        ("DPMSolverMultistep", {"solver_order": 3}, "order must be 1 or 2, not 3"),
        ("DPMSolverMultistep", {"solver_type": "heun"}, "solver_type is 'heun'"),
        ("DPMSolverMultistep", {"thresholding": True}, "thresholding is True"),
        (
            "DPMSolverMultistep",
            {"use_beta_sigmas": True},
            "use_beta_sigmas is True; here it can be False only",
        ),
        ("DPMSolverMultistep", {"use_flow_sigmas": True}, "use_flow_sigmas is True"),
        ("DPMSolverMultistep", {"lambda_min_clipped": -5.1}, "lambda_min_clipped is -5.1"),
        ("DPMSolverMultistep", {"variance_type": "learned"}, "variance_type is 'learned'"),
        ("DPMSolverMultistep", {"final_sigmas_type": "one"}, "'zero' or 'sigma_min', not 'one'"),
        (
            "DPMSolverMultistep",
            {"use_karras_sigmas": True, "use_lu_lambdas": True},
            "expected one spacing by sigma, got karras, uniform_lambda",
        ),
        ("UniPCMultistep", {"predict_x0": False}, "predict_x0 is False"),
        ("UniPCMultistep", {"disable_corrector": [0]}, r"disable_corrector is \[0\]"),
        ("EulerDiscrete", {"timestep_type": "continuous"}, "timestep_type is 'continuous'"),
        ("EulerDiscrete", {"sigma_max": 80.0}, "sigma_max is 80.0"),
        ("EulerDiscrete", {"interpolation_type": "log_linear"}, "interpolation_type is 'log_linear'"),
        (
            "LMSDiscrete",
            {"use_karras_sigmas": True, "timestep_spacing": "leading"},
            "timestep_spacing is 'leading'; with karras sigmas it can be 'linspace' only",
        ),
        ("HeunDiscrete", {"clip_sample": True}, "clip_sample is True"),
    ],
)
def test_a_folders_solver_that_is_not_ours(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_diffusers({"_class_name": f"{name}Scheduler", **settings})


# --- img2img ---------------------------------------------------------------------------------------------


def test_truncation_between_levels_that_are_no_whole_timesteps() -> None:
    pairs = solver_pairs(SCHEDULE, 10, "karras")
    assert truncate(pairs, 0.7) == (pairs[3][0], pairs[3:])
    assert truncate(pairs, 1.0) == (pairs[0][0], pairs)
    t_start, to_run = truncate(pairs, 0.75)
    assert t_start == pytest.approx((pairs[2][0] + pairs[3][0]) / 2, rel=1e-12)
    assert to_run == [(t_start, pairs[3][0]), *pairs[3:]]
    assert truncate(pairs, 0.01) == (0, [(0.0, -1)])
