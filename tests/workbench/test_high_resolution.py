"""Drawing in two passes: what the second pass is, and what is refused before the first."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import ldm_core
from ldm_core import HighResolution, Sampler, Windows
from ldm_core.schedulers import truncate

OPTIONS: dict[str, Any] = {"steps": 2, "seed": [3, 5], "num_images": 2, "guidance_scale": 3}


@pytest.fixture
def sampler(tiny: ldm_core.LatentDiffusion) -> Sampler:
    return Sampler(tiny)


def test_the_picture_way_is_img2img_of_the_enlarged_picture(sampler: Sampler) -> None:
    first = sampler.txt2img("a", **OPTIONS, output="tensor")
    large = F.interpolate(first, scale_factor=2, mode="bicubic").clamp(0, 1)
    options = {"steps": 3, "guidance_scale": 3, "seed": OPTIONS["seed"][1], "output": "tensor"}
    expected = sampler.img2img("a", large[1:], 0.5, **options)
    plan = HighResolution(2, 0.5, "picture", steps=3)
    result = sampler.txt2img("a", **OPTIONS, output="tensor", high_resolution=plan)
    assert result.shape == (2, 3, 64, 64)
    torch.testing.assert_close(result[1:], expected, atol=1e-4, rtol=0)


@pytest.mark.one_in(2)
@pytest.mark.parametrize("scheduler", [ldm_core.DDIM(eta=1), ldm_core.DDIM()])
def test_the_latent_way_is_the_rest_of_a_run_from_the_enlarged_latent(
    sampler: Sampler, scheduler: ldm_core.DDIM
) -> None:
    sampler.scheduler = scheduler
    x0 = F.interpolate(sampler.txt2img("a", **OPTIONS, output="latent"), scale_factor=1.5, mode="bilinear")
    schedule = sampler.model.noise_schedule
    start, pairs = truncate(scheduler.timesteps(schedule, 2), 0.5)
    noise = [torch.randn(4, 24, 24, generator=torch.Generator().manual_seed(s)) for s in OPTIONS["seed"]]
    begun = schedule.add_noise(x0, torch.stack(noise), start)
    size = {"height": 48, "width": 48, "output": "latent"}
    expected = sampler.txt2img("a", **OPTIONS, latent=begun, timesteps=pairs, **size)
    plan = HighResolution(1.5, 0.5)
    found = sampler.txt2img("a", **OPTIONS, output="latent", high_resolution=plan)
    assert torch.equal(found, expected)


def test_the_recipe_gives_the_picture_again(sampler: Sampler) -> None:
    plan = HighResolution(2, 0.5)
    [picture] = sampler.txt2img("a", steps=2, high_resolution=plan)
    recipe = picture.info["recipe"]
    assert (recipe["height"], recipe["width"], recipe["strength"]) == (32, 32, 1.0)
    assert recipe["high_resolution"] == repr(plan)
    [again] = sampler.txt2img("a", steps=2, seed=recipe["seed"], high_resolution=plan)
    assert (again.size, again.tobytes()) == ((64, 64), picture.tobytes())


def test_windows_work_in_the_second_pass_alone(sampler: Sampler) -> None:
    seen: list[tuple[int, ...]] = []
    options: dict[str, Any] = {"steps": 1, "guidance_scale": 1, "seed": 1, "output": "tensor"}

    def drawn(windows: Windows | None) -> torch.Tensor:
        plan = HighResolution(2, 1.0, windows=windows)
        on_step = lambda step: seen.append(tuple(step.latent.shape[2:]))  # noqa: E731
        return sampler.txt2img("a", **options, high_resolution=plan, on_step=on_step)

    whole = drawn(None)
    torch.testing.assert_close(drawn(Windows(64, 32)), whole)  # a window larger than the picture
    assert not torch.allclose(drawn(Windows(24, 8)), whole)
    assert seen == [(16, 16), (32, 32)] * 3


def test_img2img_takes_it(sampler: Sampler) -> None:
    picture = Image.new("RGB", (32, 32), "red")
    [image] = sampler.img2img("a", picture, 0.5, steps=2, seed=1, high_resolution=HighResolution(2, 0.5))
    assert image.size == (64, 64)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"scale": 0.5}, "scale must be a number of at least 1, not 0.5"),
    ({"scale": float("nan")}, "scale must be a number of at least 1"),
    ({"strength": 0}, r"strength must be in \(0, 1\], not 0"),
    ({"enlarge": "pixels"}, "enlarge must be 'latent' or 'picture', not 'pixels'"),
    ({"steps": 0}, "steps must be a positive int or None, not 0"),
    ({"windows": 64}, "windows must be ldm_core.Windows or None, not 64"),
]


@pytest.mark.parametrize(("values", "message"), BAD)
def test_bad_values_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HighResolution(**values)


def test_bad_requests_are_refused_before_the_first_step(sampler: Sampler) -> None:
    def refuse(message: str, plan: Any, task: str = "txt2img", **options: Any) -> None:
        drawn: list[Any] = []
        with pytest.raises(ValueError, match=message):
            getattr(sampler, task)("a", steps=2, on_step=drawn.append, high_resolution=plan, **options)
        assert drawn == []

    refuse("height must be a positive multiple of 4 pixels, not 41.6", HighResolution(1.3))
    refuse("expected high_resolution as ldm_core.HighResolution, not 2", 2)
    refuse("windows must be multiples of 2 latent pixels", HighResolution(windows=Windows(3)))
    picture, mask = Image.new("RGB", (32, 32)), Image.new("L", (32, 32), 255)
    refuse("takes no mask", HighResolution(), "inpaint", image=picture, mask=mask)
    refuse("needs about .* GiB at once", HighResolution(2048))
    with pytest.raises(ValueError, match="steps runs one pass"):
        next(sampler.steps("a", high_resolution=HighResolution()))
