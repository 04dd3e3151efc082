"""What a pure step promises, in k-diffusion's variables too; and the scheduler of a diffusers folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, PNDMScheduler
from support.scheduler_runs import SCHEDULE, SD1_BETAS, SHAPE, denoiser, draw, error, network, run
from torch import Tensor

from ldm_core.noise_schedule import Denoiser, NoiseSchedule
from ldm_core.schedulers import DDIM, DDPM, PNDM, Scheduler, ddim_update, from_diffusers

ALL_SCHEDULERS: list[Any] = [
    DDIM(),
    DDIM(eta=0.5, spacing="trailing"),
    DDIM(eta=1.0, set_alpha_to_one=True),
    PNDM(),
    PNDM(warmup="runge_kutta"),
    DDPM(),
    DDPM(variance="fixed_large", spacing="linspace"),
]


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
