"""The solvers' noise levels and steps against diffusers."""

from __future__ import annotations

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
    sigma,
)
from torch import Tensor

from ldm_core.schedulers import LMS, DPMSolverMultistep, Euler, EulerAncestral, Heun, UniPC, solver_pairs

FLOAT_SPACINGS = ("karras", "exponential", "uniform_lambda")


def sigmas_of(ours: Any, n: int) -> list[float]:
    """The noise levels of a run, and the one that it ends at."""
    end = 0.0 if getattr(ours, "set_alpha_to_one", True) else sigma(0)
    return [sigma(t) for t, _ in ours.timesteps(SCHEDULE, n)] + [end]


# --- noise levels against diffusers ----------------------------------------------------------------------

BY_SIGMA = [
    (DPMSolverMultistepScheduler, "use_karras_sigmas", "karras"),
    (DPMSolverMultistepScheduler, "use_exponential_sigmas", "exponential"),
    (DPMSolverMultistepScheduler, "use_lu_lambdas", "uniform_lambda"),
    (UniPCMultistepScheduler, "use_karras_sigmas", "karras"),
    (UniPCMultistepScheduler, "use_exponential_sigmas", "exponential"),
    (EulerDiscreteScheduler, "use_karras_sigmas", "karras"),
    (EulerDiscreteScheduler, "use_exponential_sigmas", "exponential"),
    (HeunDiscreteScheduler, "use_karras_sigmas", "karras"),
    (LMSDiscreteScheduler, "use_karras_sigmas", "karras"),
]


@pytest.mark.parametrize("n", [2, 10, 25])
@pytest.mark.parametrize(("theirs", "setting", "spacing"), BY_SIGMA)
def test_spacings_by_sigma_are_diffusers(theirs: Any, setting: str, spacing: Any, n: int) -> None:
    # Theirs are rounded to float32, of a float32 table: 1e-5 of the largest. From our table, 1e-6 of each.
    ours = torch.tensor([sigma(t) for t, _ in solver_pairs(SCHEDULE, n, spacing)], dtype=torch.float64)
    scheduler = theirs(**SD1_BETAS, **{setting: True})
    for table, tolerance in ((scheduler.alphas_cumprod, None), (SCHEDULE.alphas_cumprod, 1e-6)):
        scheduler.alphas_cumprod = table
        scheduler.set_timesteps(n)
        expected = scheduler.sigmas.double()[:-1]
        if theirs is HeunDiscreteScheduler:
            expected = expected[::2]
        assert len(expected) == n
        assert error(ours, expected) < 1e-5
        if tolerance is not None:
            assert float((ours / expected - 1).abs().max()) < tolerance


def test_diffusers_rounds_the_networks_timestep_in_some_classes() -> None:
    # Ours are the timesteps of the levels, exactly; theirs, with the same levels, are these:
    exact = [t for t, _ in solver_pairs(SCHEDULE, 10, "karras")]
    assert sum(t != round(t) for t in exact) == 8  # all but the two ends
    for cls, settings, how in (
        (DPMSolverMultistepScheduler, {"use_karras_sigmas": True}, round),
        (UniPCMultistepScheduler, {"use_karras_sigmas": True}, round),
        (EulerDiscreteScheduler, {"use_karras_sigmas": True}, float),
    ):
        theirs: Any = cls(**SD1_BETAS, **settings)
        theirs.alphas_cumprod = SCHEDULE.alphas_cumprod
        theirs.set_timesteps(10)
        assert theirs.timesteps.tolist() == pytest.approx([how(t) for t in exact], abs=1e-3)
    theirs = DPMSolverMultistepScheduler(**SD1_BETAS, use_exponential_sigmas=True)
    theirs.set_timesteps(10)
    exact = [t for t, _ in solver_pairs(SCHEDULE, 10, "exponential")]
    assert theirs.timesteps.tolist()[1:-1] == [int(t) for t in exact[1:-1]]


@pytest.mark.parametrize("cls", [DPMSolverMultistepScheduler, UniPCMultistepScheduler])
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_multistep_solvers_of_diffusers_leave_out_the_last_timestep(cls: Any, spacing: Any) -> None:
    theirs = cls(**SD1_BETAS, timestep_spacing=spacing, steps_offset=1)
    for n in (1, 2, 10, 20, 25, 50):
        theirs.set_timesteps(n)
        ours = solver_pairs(SCHEDULE, n, spacing, 1, skip_last=spacing != "trailing")
        assert [t for t, _ in ours] == theirs.timesteps.tolist()
        assert all(type(t) is int for pair in ours for t in pair)


def test_exponential_and_uniform_lambda_are_one() -> None:
    assert solver_pairs(SCHEDULE, 9, "exponential") == solver_pairs(SCHEDULE, 9, "uniform_lambda")
    steps = torch.tensor([sigma(t) for t, _ in solver_pairs(SCHEDULE, 9, "exponential")]).log().diff()
    torch.testing.assert_close(steps, steps.mean().expand(8), rtol=0, atol=1e-6)


@pytest.mark.parametrize("spacing", FLOAT_SPACINGS)
def test_spacings_by_sigma_run_from_end_to_end_of_the_table(spacing: Any) -> None:
    for n in (2, 3, 50, 1000):
        pairs = solver_pairs(SCHEDULE, n, spacing)
        assert (len(pairs), pairs[0][0], pairs[-1]) == (n, 999.0, (0.0, -1))
    assert solver_pairs(SCHEDULE, 1, spacing) == [(999.0, -1)]


# --- steps against diffusers -----------------------------------------------------------------------------

CLASSES: dict[type, tuple[Any, float]] = {
    DPMSolverMultistep: (DPMSolverMultistepScheduler, 1e-6),
    UniPC: (UniPCMultistepScheduler, 1e-9),
    Euler: (EulerDiscreteScheduler, 1e-6),
    EulerAncestral: (EulerAncestralDiscreteScheduler, 1e-6),
    Heun: (HeunDiscreteScheduler, 1e-9),
    LMS: (LMSDiscreteScheduler, 1e-9),
}


PARITY: list[Any] = [
    DPMSolverMultistep(),
    DPMSolverMultistep(spacing="karras"),
    DPMSolverMultistep(spacing="exponential"),
    DPMSolverMultistep(spacing="uniform_lambda"),
    DPMSolverMultistep(order=1, spacing="leading"),
    DPMSolverMultistep(set_alpha_to_one=False, lower_order_final=False),
    UniPC(),
    UniPC(spacing="karras"),
    UniPC(spacing="exponential"),
    UniPC(solver_type="bh1", set_alpha_to_one=False),
    UniPC(order=1),
    UniPC(order=3, set_alpha_to_one=False, lower_order_final=False),
    UniPC(order=3, solver_type="bh1", set_alpha_to_one=False, lower_order_final=False),
    Euler(),
    Euler(spacing="karras"),
    Euler(spacing="leading", set_alpha_to_one=False),
    EulerAncestral(),
    EulerAncestral(spacing="karras"),
    Heun(),
    Heun(spacing="karras"),
    LMS(),
    LMS(spacing="karras"),
    LMS(spacing="linspace", order=2),
]


def diffusers_of(ours: Any, n: int, prediction: str) -> Any:
    """Their scheduler with our noise levels in float64."""
    cls, _ = CLASSES[type(ours)]
    settings: dict[str, Any] = {"prediction_type": PREDICTION_TYPE[prediction]}
    if isinstance(ours, (DPMSolverMultistep, UniPC)):
        settings["solver_order"] = ours.order
        settings["lower_order_final"] = ours.lower_order_final
        settings["final_sigmas_type"] = "zero" if ours.set_alpha_to_one else "sigma_min"
    if isinstance(ours, UniPC):
        settings["solver_type"] = ours.solver_type
    theirs = cls(**SD1_BETAS, **settings)
    theirs.set_timesteps(n)
    levels = torch.tensor(sigmas_of(ours, n), dtype=torch.float64)
    if isinstance(ours, Heun):
        levels = torch.cat([levels[:1], levels[1:-1].repeat_interleave(2), levels[-1:]])
    theirs.sigmas = levels
    theirs.set_begin_index(0)
    return theirs


class Driven:
    """Their scheduler step by step, from an x on our scale and with our network calls."""

    def __init__(self, ours: Any, n: int, prediction: str, seed: int = 0) -> None:
        self.ours, self.prediction = ours, prediction
        self.theirs = diffusers_of(ours, n, prediction)
        self.generator = torch.Generator().manual_seed(seed)
        self.call = 0

    def step(self, x: Tensor, t: float, t_prev: float) -> Tensor:
        scaled = not isinstance(self.ours, (DPMSolverMultistep, UniPC))
        a = SCHEDULE.signal_and_noise(t)[0] if scaled else 1.0
        if not scaled:
            a_prev = 1.0
        elif t_prev == -1 and not getattr(self.ours, "set_alpha_to_one", True):
            a_prev = SCHEDULE.signal_and_noise(0)[0]
        else:
            a_prev = SCHEDULE.signal_and_noise(t_prev)[0]
        moved = self._call(x / a, x, t)
        if isinstance(self.ours, Heun) and t_prev != -1:
            moved = self._call(moved, moved * a_prev, t_prev)
        return moved * a_prev

    def _call(self, sample: Tensor, x: Tensor, t: float) -> Tensor:
        options: dict[str, Any] = {}
        if isinstance(self.ours, EulerAncestral):
            options["generator"] = self.generator
        if isinstance(self.ours, LMS):
            options["order"] = self.ours.order
        self.theirs.is_scale_input_called = True
        timestep = self.theirs.timesteps[self.call]
        self.call += 1
        moved: Tensor = self.theirs.step(network(x, t), timestep, sample, **options).prev_sample
        return moved


def noises(n: int) -> list[Tensor]:
    """What `EulerAncestralDiscreteScheduler` draws, step by step."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(n)]


@pytest.mark.one_in(4)
@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("n", [1, 2, 10, 20])
@pytest.mark.parametrize("ours", PARITY)
def test_every_step_is_diffusers(ours: Any, n: int, prediction: str) -> None:
    tolerance = CLASSES[type(ours)][1]
    driven, x, history = Driven(ours, n, prediction), draw(*SHAPE), None
    for (t, t_prev), noise in zip(ours.timesteps(SCHEDULE, n), noises(n), strict=True):
        step = ours.step(denoiser(prediction), x, t, t_prev, history, noise)
        assert error(step.x, driven.step(x, t, t_prev)) < tolerance
        x, history = step.x, step.history


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("ours", PARITY)
def test_a_trajectory_is_diffusers(ours: Any, prediction: str) -> None:
    # Rounding to float32 at every step adds up: 1e-5 for those that do.
    n = 12
    driven, theirs, x, history = Driven(ours, n, prediction), draw(*SHAPE), draw(*SHAPE), None
    for (t, t_prev), noise in zip(ours.timesteps(SCHEDULE, n), noises(n), strict=True):
        theirs = driven.step(theirs, t, t_prev)
        step = ours.step(denoiser(prediction), x, t, t_prev, history, noise)
        x, history = step.x, step.history
    assert error(x, theirs) < 10 * CLASSES[type(ours)][1]


def test_diffusers_lowers_the_last_order_below_15_steps_only() -> None:
    ours, x = DPMSolverMultistep(set_alpha_to_one=False), draw(*SHAPE)
    for n, same in ((14, True), (15, False)):
        pairs = ours.timesteps(SCHEDULE, n)
        steps, driven = run(ours, denoiser(), x, pairs), Driven(ours, n, "eps")
        for before, pair in zip([x, *(step.x for step in steps)], pairs):
            expected = driven.step(before, *pair)
        assert (error(steps[-1].x, expected) < 1e-6) == same


def test_diffusers_bh1_ends_in_nan_at_the_clean_image() -> None:
    # Its B(h) = h is infinite there, and is multiplied by a sum of nothing.
    ours, x = UniPC(solver_type="bh1"), draw(*SHAPE)
    (pair,) = ours.timesteps(SCHEDULE, 1)
    assert bool(Driven(ours, 1, "eps").step(x, *pair).isnan().all())
    assert bool(ours.step(denoiser(), x, *pair, None, None).x.isfinite().all())
