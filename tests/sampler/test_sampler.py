"""The sampler: seeds, batches, chunks, image to image, inpainting, hooks, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.configs import SMALL
from support.reference import random_model
from support.sampler_inputs import SIZE, counting
from torch import Tensor

import ldm_core
from ldm_core import DDIM, DDPM, PNDM, ClassifierFreeGuidance, Sampler
from ldm_core.model import LatentDiffusion
from ldm_core.nn.winograd import winograd_conv2d
from ldm_core.noise import randn
from ldm_core.request import Request
from ldm_core.sampler import SamplerStep
from ldm_core.schedulers.spacing import truncate_compvis

PROMPTS = ["fire", "panda", "angry face", "grinning cat", "pizza", "dog face", "rocket", "red apple"]


QUICK: dict[str, Any] = {"steps": 3, "guidance_scale": 4.0, "output": "tensor"}


LATENT = (16, 8, 8)  # the shape of their latents


# The networks sum in another order for another batch size; the pictures differ by less than this, in [0, 1].
ROUNDING = 1e-4


@pytest.fixture(scope="module")
def half_mask() -> Image.Image:
    """The right half is to be repainted."""
    mask = Image.new("L", (SIZE, SIZE), 0)
    mask.paste(255, (SIZE // 2, 0, SIZE, SIZE))
    return mask


@pytest.fixture(scope="module")
def inpainting_model() -> LatentDiffusion:
    return random_model(SMALL["sd1-inpaint"])


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    "scheduler",
    [DDIM(eta=1.0), PNDM(), *(pytest.param(s, marks=pytest.mark.slow) for s in (DDIM(), DDPM()))],
    ids=repr,
)
def test_an_image_is_the_same_alone_in_a_batch_and_in_another_order(
    bundled: LatentDiffusion, scheduler: Any
) -> None:
    sampler = Sampler(bundled, scheduler)
    batch = sampler.txt2img(PROMPTS[:4], seed=7, **QUICK)
    order = [3, 1, 0, 2]
    shuffled = sampler.txt2img([PROMPTS[i] for i in order], seed=[7 + i for i in order], **QUICK)
    for k in (0, 3):
        alone = sampler.txt2img(PROMPTS[k], seed=7 + k, **QUICK)
        assert (alone[0] - batch[k]).abs().max() < ROUNDING
        assert (shuffled[order.index(k)] - batch[k]).abs().max() < ROUNDING


@pytest.mark.slow  # pictures large enough for Winograd's path
def test_an_image_of_a_batch_that_takes_winograds_path_is_the_same_alone(
    bundled: LatentDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a layer does depends on how many tiles the whole batch has."""
    batches = []

    def counted(x: Tensor, *others: Any) -> Tensor:
        batches.append(len(x))
        return winograd_conv2d(x, *others)

    monkeypatch.setattr("ldm_core.nn.convolution.winograd_conv2d", counted)
    sampler, options = Sampler(bundled), QUICK | {"steps": 2}
    batch = sampler.txt2img(PROMPTS * 2, seed=7, **options)
    alone = sampler.txt2img(PROMPTS[7], seed=22, **options)
    assert set(batches) == {32}, "16 images, with and without their prompts"
    assert (alone[0] - batch[15]).abs().max() < ROUNDING


def test_the_initial_noise_is_the_seeds_to_the_bit(bundled: LatentDiffusion) -> None:
    starts = []
    sampler = Sampler(bundled)
    for seed, count in ((5, 3), ([7], 1), ([7, 5], 2)):
        start = sampler._prepare(Request(inputs="fire", num_images=count, seed=seed))
        starts.append(start.latent)
    assert torch.equal(starts[0][2], starts[1][0])
    assert torch.equal(starts[2], starts[0][[2, 0]])
    assert torch.equal(starts[0][0], torch.randn(LATENT, generator=torch.Generator().manual_seed(5)))


def test_the_same_call_gives_the_same_bits(bundled: LatentDiffusion) -> None:
    sampler = Sampler(bundled, DDPM())
    first = sampler.txt2img("fire", seed=1, **QUICK)
    torch.manual_seed(99)  # the global stream has no say
    assert torch.equal(sampler.txt2img("fire", seed=1, **QUICK), first)
    assert not torch.equal(sampler.txt2img("fire", seed=2, **QUICK), first)
    assert not torch.equal(sampler.txt2img("fire", **QUICK), sampler.txt2img("fire", **QUICK))


@pytest.mark.parametrize("batch_size", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_chunks_do_not_change_the_result(bundled: LatentDiffusion, batch_size: int) -> None:
    whole = Sampler(bundled).txt2img(PROMPTS[:4], "ugly", seed=0, **QUICK)
    chunks = Sampler(bundled, batch_size=batch_size).txt2img(PROMPTS[:4], "ugly", seed=0, **QUICK)
    assert (whole - chunks).abs().max() < ROUNDING


def test_several_images_of_several_prompts_are_ordered_by_prompt(bundled: LatentDiffusion) -> None:
    sampler = Sampler(bundled)
    images = sampler.txt2img(["fire", "panda"], num_images=2, seed=0, **QUICK)
    assert images.shape == (4, 3, SIZE, SIZE)
    single = sampler.txt2img("panda", seed=3, **QUICK)
    assert (images[3] - single[0]).abs().max() < ROUNDING


def test_outputs(bundled: LatentDiffusion) -> None:
    sampler = Sampler(bundled)
    latent = sampler.txt2img("fire", steps=2, seed=0, output="latent")
    assert latent.shape == (1, *LATENT)
    tensor = sampler.txt2img("fire", steps=2, seed=0, output="tensor")
    assert torch.equal(tensor, (bundled.decode_latent(latent) / 2 + 0.5).clamp(0, 1).detach())
    (pil,) = sampler.txt2img("fire", steps=2, seed=0)
    assert pil.size == (SIZE, SIZE)
    assert np.abs(np.asarray(pil) / 255 - tensor[0].permute(1, 2, 0).numpy()).max() <= 0.5 / 255 + 1e-6


def test_options_may_be_given_in_order(bundled: LatentDiffusion) -> None:
    sampler = Sampler(bundled)
    expected = sampler.txt2img("fire", "blue", steps=2, guidance_scale=3.0, seed=0, output="latent")
    ordered = sampler.txt2img("fire", "blue", 2, 3.0, None, None, 1, 0, output="latent")
    assert torch.equal(ordered, expected)


def test_any_size_that_fits(bundled: LatentDiffusion) -> None:
    (image,) = Sampler(bundled).txt2img("fire", steps=1, height=64, width=192, seed=0)
    assert image.size == (192, 64)


def test_noise_replaces_the_seeds_draw(bundled: LatentDiffusion) -> None:
    sampler = Sampler(bundled)
    noise = randn((1, *LATENT), torch.Generator().manual_seed(3))
    assert torch.equal(
        sampler.txt2img("fire", noise=noise, seed=0, **QUICK), sampler.txt2img("fire", seed=3, **QUICK)
    )


def test_guidance_in_one_call_or_in_two_is_the_same(bundled: LatentDiffusion) -> None:
    batched = Sampler(bundled).txt2img("fire", "blue", seed=0, **QUICK)
    separate = Sampler(bundled, guidance=ClassifierFreeGuidance(batched=False))
    assert (separate.txt2img("fire", "blue", seed=0, **QUICK) - batched).abs().max() < ROUNDING


@pytest.mark.parametrize(
    ("scheduler", "scale", "guidance", "expected"),
    [
        (DDIM(), 1.0, ClassifierFreeGuidance(), [1] * 4),
        (DDIM(), 0.5, ClassifierFreeGuidance(), [2] * 4),
        (DDIM(), 0.0, ClassifierFreeGuidance(), [1] * 4),
        (DDIM(), 4.0, ClassifierFreeGuidance(batched=False), [1] * 8),
        (PNDM(), 4.0, ClassifierFreeGuidance(), [2] * 5),
        (DDIM(), 4.0, ClassifierFreeGuidance(interval=(0.0, 0.5)), [2, 2, 1, 1]),
    ],
)
def test_number_of_network_evaluations(
    bundled: LatentDiffusion, scheduler: Any, scale: float, guidance: Any, expected: list[int]
) -> None:
    model, rows = counting(bundled)
    Sampler(model, scheduler, guidance).txt2img(
        "fire", steps=4, guidance_scale=scale, seed=0, output="latent"
    )
    assert rows == expected


def test_steps_is_txt2img_taken_apart(bundled: LatentDiffusion) -> None:
    sampler = Sampler(bundled, PNDM())
    steps = list(sampler.steps("fire", steps=5, guidance_scale=4.0, seed=0))
    assert [step.index for step in steps] == [0, 1, 2, 3, 4]
    assert [step.t for step in steps] == [801, 601, 401, 201, 1]
    whole = sampler.txt2img("fire", steps=5, guidance_scale=4.0, seed=0, output="latent")
    assert torch.equal(steps[-1].latent, whole)
    assert steps[0].x0.shape == whole.shape


def test_steps_leaves_gradients_on_for_its_caller(bundled: LatentDiffusion) -> None:
    for step in Sampler(bundled).steps("fire", steps=1, seed=0):
        assert torch.is_grad_enabled()
        assert not step.latent.requires_grad


def test_on_step_sees_every_step_and_may_replace_the_latent(bundled: LatentDiffusion) -> None:
    sampler = Sampler(bundled)
    seen: list[int] = []

    def restart(step: SamplerStep) -> torch.Tensor | None:
        seen.append(step.index)
        return torch.zeros_like(step.latent) if step.index == 1 else None

    changed = sampler.txt2img("fire", seed=0, on_step=restart, **QUICK)
    assert seen == [0, 1, 2]
    other = sampler.txt2img("fire", seed=5, on_step=restart, **QUICK)
    assert torch.equal(changed, other), "the seed must not matter once the latent was replaced"
    with pytest.raises(
        ValueError, match=r"returned a tensor of \(1,\), expected None or a tensor of \(1, 16, 8, 8\)"
    ):
        sampler.txt2img("fire", seed=0, on_step=lambda step: torch.zeros(1), **QUICK)


def test_a_walk_can_be_taken_up_in_the_middle(bundled: LatentDiffusion) -> None:
    sampler = Sampler(bundled)
    options: dict[str, Any] = {"steps": 6, "guidance_scale": 4.0, "seed": 0}
    all_steps = list(sampler.steps("fire", **options))
    pairs = DDIM().timesteps(bundled.noise_schedule, 6)
    rest = list(sampler.steps("fire", latent=all_steps[2].latent, timesteps=pairs[3:], **options))
    assert torch.equal(rest[-1].latent, all_steps[-1].latent)


def test_img2img_at_full_strength_is_txt2img(bundled: LatentDiffusion, picture: Image.Image) -> None:
    sampler = Sampler(bundled)
    redrawn = sampler.img2img("fire", picture, 1.0, seed=4, **QUICK)
    assert torch.equal(redrawn, sampler.txt2img("fire", seed=4, **QUICK))
    noise = torch.randn(1, *LATENT)
    redrawn = sampler.img2img("fire", picture, 1.0, noise=noise, **QUICK)
    assert torch.equal(redrawn, sampler.txt2img("fire", noise=noise, **QUICK))


@pytest.mark.slow  # pictures of the bundled model
def test_more_strength_moves_further_from_the_image(bundled: LatentDiffusion, picture: Image.Image) -> None:
    sampler = Sampler(bundled)
    original = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
    results = [
        sampler.img2img("fire", picture, s, steps=20, seed=0, output="tensor") for s in (0.05, 0.4, 0.9)
    ]
    distances = [float((r[0] - original).abs().mean()) for r in results]
    assert distances[0] < distances[1] < distances[2]
    assert distances[0] < 0.1


def test_nearby_strengths_give_different_images(bundled: LatentDiffusion, picture: Image.Image) -> None:
    """int(strength * steps) would make these three one."""
    sampler = Sampler(bundled)
    images = [sampler.img2img("fire", picture, s, seed=0, **QUICK) for s in (0.70, 0.74, 0.78)]
    assert not torch.equal(images[0], images[1])
    assert not torch.equal(images[1], images[2])


def test_compvis_own_img2img_can_be_walked(bundled: LatentDiffusion, picture: Image.Image) -> None:
    """It noises to the grid's index t_enc and denoises from the one before."""
    sampler = Sampler(bundled)
    pairs = DDIM().timesteps(bundled.noise_schedule, 10)
    t_noise, rest = truncate_compvis(pairs, 0.5)
    assert (t_noise, rest[0][0]) == (501, 401)
    x0 = bundled.encode_image(torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 127.5 - 1).detach()
    noise = torch.randn(1, *LATENT)
    latent = bundled.noise_schedule.add_noise(x0, noise, t_noise)
    walk = list(sampler.steps("fire", latent=latent, timesteps=rest, seed=0))
    assert [step.t for step in walk] == [401, 301, 201, 101, 1]


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_inpainting_leaves_the_rest_exactly(
    bundled: LatentDiffusion, picture: Image.Image, half_mask: Image.Image, strength: float
) -> None:
    (result,) = Sampler(bundled).inpaint("fire", picture, half_mask, strength, steps=3, seed=0)
    before, after = np.asarray(picture), np.asarray(result)
    assert np.array_equal(before[:, : SIZE // 2], after[:, : SIZE // 2])
    assert not np.array_equal(before[:, SIZE // 2 :], after[:, SIZE // 2 :])


def test_inpainting_leaves_tensors_exactly_too(bundled: LatentDiffusion, half_mask: Image.Image) -> None:
    image = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    result = Sampler(bundled).inpaint("fire", image, half_mask, seed=0, **QUICK)
    assert torch.equal(result[..., : SIZE // 2], image[..., : SIZE // 2])
    assert not torch.equal(result[..., SIZE // 2 :], image[..., SIZE // 2 :])


def test_inpainting_a_grey_mask_blends(bundled: LatentDiffusion, picture: Image.Image) -> None:
    sampler = Sampler(bundled)
    images = {
        level: sampler.inpaint("fire", picture, Image.new("L", (SIZE, SIZE), level), seed=0, **QUICK)
        for level in (0, 255)
    }
    original = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
    assert torch.equal(images[0][0], original)
    assert torch.equal(images[255], sampler.txt2img("fire", seed=0, **QUICK))


def test_the_known_part_guides_what_is_painted_beside_it(
    bundled: LatentDiffusion, picture: Image.Image, half_mask: Image.Image
) -> None:
    sampler = Sampler(bundled)
    dark = Image.new("RGB", (SIZE, SIZE), (20, 20, 20))
    a = sampler.inpaint("fire", picture, half_mask, seed=0, **QUICK)
    b = sampler.inpaint("fire", dark, half_mask, seed=0, **QUICK)
    assert (a - b)[..., SIZE // 2 :].abs().max() > 0.01


def test_an_inpainting_unet_sees_mask_and_masked_image(
    inpainting_model: LatentDiffusion, picture: Image.Image, half_mask: Image.Image
) -> None:
    seen = []
    inner = inpainting_model.unet

    def unet(x: torch.Tensor, t: Any, context: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return inner(x, t, context)

    model = replace(inpainting_model, unet=unet)
    middle = (32, 0, 96, 64)  # half known, half to be repainted; its latents are 8×8
    picture, half_mask = picture.crop(middle), half_mask.crop(middle)
    (result,) = Sampler(model).inpaint("fire", picture, half_mask, steps=2, seed=0)
    assert seen[0].shape == (2, 9, 8, 8)
    assert torch.equal(seen[0][0, 4, :, :4], torch.zeros(8, 4))
    assert torch.equal(seen[0][0, 4, :, 4:], torch.ones(8, 4))
    assert torch.equal(seen[0][:, 4:], seen[1][:, 4:])
    assert np.array_equal(np.asarray(picture)[:, :32], np.asarray(result)[:, :32])
    (free,) = Sampler(model).txt2img("fire", steps=1, seed=0, height=64, width=64)
    assert free.size == (64, 64)
    assert torch.equal(seen[-1][:, 4], torch.ones(2, 8, 8))


def test_one_image_per_prompt(bundled: LatentDiffusion, picture: Image.Image) -> None:
    sampler = Sampler(bundled)
    other = picture.rotate(90)
    both = sampler.img2img(["fire", "panda"], [picture, other], 0.5, seed=0, **QUICK)
    second = sampler.img2img("panda", other, 0.5, seed=1, **QUICK)
    assert (both[1] - second[0]).abs().max() < ROUNDING


def test_lower_precision_stays_close(bundled: LatentDiffusion) -> None:
    reference = Sampler(bundled).txt2img("fire", seed=0, **QUICK)
    half = Sampler(ldm_core.load(dtype=torch.bfloat16)).txt2img("fire", seed=0, **QUICK)
    assert half.dtype == torch.float32
    # bfloat16 has 8 bits: an error of 2**-8 in each of a hundred layers, three times over.
    assert (half - reference).abs().mean() < 0.02


def test_v_prediction_walks_the_same_way() -> None:
    """A v model built from an eps model (v = a eps - s x0) must draw the eps model's picture."""
    model = random_model(SMALL["sd1"], dtype=torch.float64)
    schedule, unet = model.noise_schedule, model.unet

    def as_v(x: torch.Tensor, t: int, context: torch.Tensor) -> torch.Tensor:
        eps = unet(x, t, context)
        return schedule.v_from_eps_x0(eps, schedule.x0_from_eps(x, eps, t), t)

    v_model = replace(model, unet=as_v, config=replace(model.config, prediction="v"))
    options: dict[str, Any] = {"steps": 5, "seed": 0, "guidance_scale": 1.0, "output": "latent"}
    eps_latent = Sampler(model).txt2img("fire", **options)
    v_latent = Sampler(v_model).txt2img("fire", **options)
    assert (v_latent - eps_latent).abs().max() / eps_latent.abs().max() < 1e-12
