"""The x4 upscaler's condition against its formula in float64 and against diffusers' scheduler."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image
from support.texts import text_conditioner

from ldm_core.conditioners import NoisedImage, NoisedImageConfig, UnclipConfig
from ldm_core.noise import generators, randn

TEXT = text_conditioner()
IMAGES = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))


def alpha_cumprod(level: int) -> float:
    product = 1.0
    for i in range(level + 1):
        root = math.sqrt(1e-4) + (math.sqrt(0.02) - math.sqrt(1e-4)) * i / 999
        product *= 1 - root**2
    return product


def test_noise_is_added_by_the_level() -> None:
    conditioner = NoisedImage(TEXT)
    inputs = [{"prompt": "a", "image": IMAGES[0]}, {"image": IMAGES[1], "noise_level": 349}]
    condition = conditioner(inputs, generators([5, 6]))
    assert condition.concat is not None
    assert condition.vector is not None
    assert condition.vector.tolist() == [20, 349]
    assert condition.vector.dtype == torch.int64
    noise = randn((2, 3, 8, 12), generators([5, 6])).double()
    for k, level in enumerate((20, 349)):
        a = alpha_cumprod(level)
        expected = math.sqrt(a) * (2 * IMAGES[k].double() - 1) + math.sqrt(1 - a) * noise[k]
        assert float((condition.concat[k] - expected).abs().max()) < 1e-5 * float(expected.abs().max())
    assert torch.equal(condition.context, TEXT(["a", ""]).context)
    assert (conditioner.count(inputs), conditioner.latent_size(inputs)) == (2, (8, 12))
    alone = conditioner(inputs[1], generators([6]))
    assert torch.equal(alone.concat, condition.concat[1:]), "an image does not depend on its batch"


def test_diffusers_adds_the_same_noise() -> None:
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=1e-4, beta_end=0.02)
    noise = randn(IMAGES.shape, generators([1, 2]))
    theirs = scheduler.add_noise(IMAGES * 2 - 1, noise, torch.tensor([100, 100]))
    inputs = [{"image": image, "noise_level": 100} for image in IMAGES]
    ours = NoisedImage(TEXT)(inputs, generators([1, 2])).concat
    assert float((ours - theirs).abs().max()) < 1e-5 * float(theirs.abs().max())


def test_what_a_sampler_reads() -> None:
    conditioner = NoisedImage(TEXT)
    assert (conditioner.unconditional, conditioner.guidance_scale) == ("", 9.0)
    assert conditioner.draws_noise
    condition = conditioner(["a", "b"])
    assert condition.vector is condition.concat is None
    assert torch.equal(condition.context, TEXT(["a", "b"]).context)
    assert conditioner.latent_size("a") is None
    pil = Image.new("RGB", (12, 8), "red")
    assert (conditioner.count([pil, pil]), conditioner.latent_size(pil)) == (2, (8, 12))
    assert not torch.equal(conditioner(pil).concat, conditioner(pil).concat), "new seeds without generators"
    state = torch.get_rng_state()
    conditioner(IMAGES)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (None, "as a prompt, or as a mapping with prompt, image, noise_level"),
        ({"prompt": "a"}, "small: expected the image as a PIL image or a tensor, not NoneType"),
        ({"image": IMAGES}, "expected one image, got \\(2, 3, 8, 12\\)"),
        ({"image": IMAGES[0] - 1}, r"values in \[0, 1\]"),
        ({"image": IMAGES[0], "noise_level": 350}, r"noise_level must be an int in 0\.\.349, not 350"),
        ({"image": IMAGES[0], "noise_level": -1}, "not -1"),
        ({"image": IMAGES[0], "noise_level": 2.5}, "not 2.5"),
        ({"image": IMAGES[0], "noise_level": True}, "not True"),
        ({"image": IMAGES[0], "level": 3}, r"got \['level'\]"),
        ([IMAGES[0], IMAGES[1, :, :4]], "pictures of one size, got 12x4, 12x8"),
    ],
)
def test_what_is_refused(inputs: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        NoisedImage(TEXT).count(inputs, "small")
    with pytest.raises(ValueError):
        NoisedImage(TEXT)(inputs)


def test_generators_are_one_per_image() -> None:
    inputs = [{"prompt": "a", "image": IMAGES[0]}, {"image": IMAGES[1], "noise_level": 7}]
    conditioner = NoisedImage(TEXT)
    several = conditioner(inputs, generators([1, 2, 3, 4, 5, 6]))
    for first, last, row in ((0, 3, inputs[0]), (3, 6, inputs[1])):
        for k in range(first, last):
            alone, found = conditioner(row, generators([k + 1])), several[[k]]
            assert torch.equal(found.concat, alone.concat)
            assert torch.equal(found.vector, alone.vector)
            assert torch.equal(found.context, alone.context)
    for given, count in ((generators([1]), 1), (torch.Generator(), 1), (generators([1, 2, 3]), 3), ([], 0)):
        with pytest.raises(ValueError, match=f"a list with generators for each of 2 inputs, got {count}"):
            conditioner(IMAGES, given)
    with pytest.raises(ValueError, match=r"levels must be an int in 1\.\.1000, not 1001"):
        NoisedImageConfig(levels=1001)


@pytest.mark.parametrize("config", [NoisedImageConfig, UnclipConfig])
def test_a_schedule_is_a_config(config: Any) -> None:
    with pytest.raises(ValueError, match="noise_schedule must be a NoiseScheduleConfig, not 5"):
        config(noise_schedule=5)
