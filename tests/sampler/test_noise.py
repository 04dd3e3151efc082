"""The noise of the steps: drawn for schedulers that use it only, and from one stream per image."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.configs import TINY

import ldm_core
from ldm_core import (
    DDIM,
    DDPM,
    LMS,
    PNDM,
    DPMSolverMultistep,
    Euler,
    EulerAncestral,
    Heun,
    LatentDiffusion,
    Sampler,
    UniPC,
)
from ldm_core import sampler as sampler_module
from ldm_core.noise import generators, randn, randn_like
from ldm_core.schedulers import Scheduler, Step

WITHOUT = [DDIM(), PNDM(), DPMSolverMultistep(), UniPC(), Euler(), EulerAncestral(eta=0.0), Heun(), LMS()]
WITH = [DDIM(eta=0.5), DDIM(eta=1.0), DDPM(), DDPM(variance="fixed_large"), EulerAncestral()]
OPTIONS: dict[str, Any] = {"steps": 3, "seed": 5, "num_images": 2, "guidance_scale": 2.0}


@pytest.fixture(scope="module")
def model() -> LatentDiffusion:
    torch.manual_seed(0)
    return ldm_core.build(TINY["sd1"])


class Always:
    """A scheduler of a user, which does not say whether it uses noise."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler, self.noise = scheduler, []

    def timesteps(self, schedule: Any, n: int) -> Any:
        return self.scheduler.timesteps(schedule, n)

    def step(self, predict: Any, x: Any, t: Any, t_prev: Any, history: Any, noise: Any) -> Step:
        self.noise.append(noise)
        return self.scheduler.step(predict, x, t, t_prev, history, noise)


def latents(model: LatentDiffusion, scheduler: Any) -> list[torch.Tensor]:
    return [step.latent for step in Sampler(model, scheduler).steps("a cat", **OPTIONS)]


@pytest.mark.one_in(5)
@pytest.mark.parametrize("scheduler", [*WITHOUT, *WITH], ids=repr)
def test_pictures_are_those_of_noise_drawn_at_every_step(scheduler: Any, model: LatentDiffusion) -> None:
    drawing = Always(scheduler)
    expected = latents(model, drawing)
    for ours, theirs in zip(latents(model, scheduler), expected, strict=True):
        assert torch.equal(ours, theirs)
    streams = generators([5, 6])  # one stream per image: the initial noise, then that of each step
    randn(expected[0].shape, streams)
    assert all(torch.equal(noise, randn(noise.shape, streams)) for noise in drawing.noise)


@pytest.mark.one_in(5)
@pytest.mark.parametrize("scheduler", WITHOUT, ids=repr)
def test_noise_that_is_ignored_is_not_drawn(
    scheduler: Any, model: LatentDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    monkeypatch.setattr(sampler_module, "randn_like", lambda *args: drawn.append(args) or randn_like(*args))
    latents(model, scheduler)
    assert drawn == []
    latents(model, DDPM())
    assert len(drawn) == OPTIONS["steps"]


def test_a_subclass_gets_noise_as_it_may_use_it(model: LatentDiffusion) -> None:
    class Noisier(DDIM):
        def step(self, predict: Any, x: Any, t: Any, t_prev: Any, history: Any, noise: Any) -> Step:
            done = super().step(predict, x, t, t_prev, history, None)
            return Step(done.x + 0.1 * noise, done.x0)

    assert not torch.equal(latents(model, Noisier())[-1], latents(model, DDIM())[-1])


def test_noise_like_a_tensor_is_the_streams_noise_in_its_dtype() -> None:
    x = torch.empty(2, 4, 8, 8, dtype=torch.float64)
    noise = randn_like(x, generators([1, 2]))
    assert torch.equal(noise, randn(x.shape, generators([1, 2])).double())
