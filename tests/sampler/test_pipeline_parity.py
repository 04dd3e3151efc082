"""Whole pictures: the bundled model in diffusers' StableDiffusionPipeline and here, from the same noise.

Text encoder, U-Net, guidance, scheduler and decoder together. Errors grow along the walk, so the bound is
looser than a network's: 1e-4 of the picture's range, which is far below one of its 256 levels.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from PIL import Image
from support.configs import SMALL
from support.reference import SCHEDULE, random_model, reference_parts, relative_error
from torch import Tensor

from ldm_core import DDIM, PNDM, Sampler
from ldm_core.model import LatentDiffusion
from ldm_core.request import Request
from ldm_core.start import prepare

PROMPTS = ["grinning cat", "strawberry, fluent emoji"]
NEGATIVE = "blurry, noto emoji"
PICTURE = 1e-4
SIZE = 128  # pixels of a side of the bundled model's pictures
LATENT = (16, 8, 8)  # the shape of their latents
THEIRS: dict[str, Any] = {**SCHEDULE, "prediction_type": "v_prediction"}


@pytest.fixture(scope="module")
def parts(bundled: LatentDiffusion) -> dict[str, Any]:
    return reference_parts(bundled)


class PNDMOfEps(PNDMScheduler):
    """diffusers' PNDM, given the eps of each v: it would combine the v of different timesteps."""

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool = True) -> Any:
        alpha = self.alphas_cumprod[timestep]
        eps = alpha.sqrt() * model_output + (1 - alpha).sqrt() * sample
        return super().step(eps, timestep, sample, return_dict)


def quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("ours", "theirs", "bound"),
    [
        (DDIM(), DDIMScheduler(**THEIRS, clip_sample=False), PICTURE),
        # Its multistep formula multiplies rounding by up to 55/24 a step: 7.3e-5.
        (PNDM(), PNDMOfEps(**SCHEDULE, skip_prk_steps=True), 3 * PICTURE),
    ],
    ids=["DDIM", "PNDM"],
)
@pytest.mark.parametrize("steps", [10])
def test_txt2img(
    bundled: LatentDiffusion, parts: dict[str, Any], ours: Any, theirs: Any, bound: float, steps: int
) -> None:
    noise = torch.randn(2, *LATENT, generator=torch.Generator().manual_seed(0))
    image = Sampler(bundled, ours).txt2img(
        PROMPTS, NEGATIVE, steps=steps, guidance_scale=4.0, noise=noise, output="tensor"
    )
    pipeline = quiet(StableDiffusionPipeline(**parts, scheduler=theirs))
    reference = pipeline(
        PROMPTS,
        negative_prompt=[NEGATIVE] * 2,
        num_inference_steps=steps,
        guidance_scale=4.0,
        latents=noise,
        height=SIZE,
        width=SIZE,
        output_type="pt",
    ).images
    assert (image - reference).abs().max() < bound


def test_img2img(bundled: LatentDiffusion, parts: dict[str, Any]) -> None:
    """diffusers draws the posterior and then the noise from one stream; here the noise comes first."""
    theirs = quiet(
        StableDiffusionImg2ImgPipeline(**parts, scheduler=DDIMScheduler(**THEIRS, clip_sample=False))
    )
    # Not its latent, for diffusers knows those of 4 channels only; and not of one colour, for a group norm
    # would divide by what rounding leaves of that.
    image = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    stream = torch.Generator().manual_seed(0)
    with torch.no_grad():
        x = bundled.encode_image(image * 2 - 1, stream)
    noise = torch.randn(x.shape, generator=stream)
    reference = theirs(
        "pizza",
        image=image,
        strength=0.5,
        num_inference_steps=10,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images
    start = bundled.noise_schedule.add_noise(x, noise, 401)
    pairs = DDIM().timesteps(bundled.noise_schedule, 10)[5:]
    walk = Sampler(bundled).steps("pizza", guidance_scale=4.0, latent=start, timesteps=pairs, seed=0)
    latent = list(walk)[-1].latent
    with torch.no_grad():
        image = (bundled.decode_latent(latent) / 2 + 0.5).clamp(0, 1)
    assert (image - reference).abs().max() < PICTURE


def test_inpainting_with_a_unet_that_sees_the_mask() -> None:
    """Mask, masked image and their order as in the original. The masked image's latent is a draw, which
    both sides take from their own random streams: diffusers is given ours."""
    model = random_model(SMALL["sd1-inpaint"])
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (24, 8, 64, 40))
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"noise": noise, "seed": 0, "steps": 5, "guidance_scale": 3.0}
    sampler = Sampler(model)
    task = Request(inputs="pizza", unconditional="blurry", image=image, mask=mask, **options)
    extra = prepare(model, sampler.scheduler, task).cond.concat
    assert extra is not None
    pipeline = quiet(
        StableDiffusionInpaintPipeline(
            **reference_parts(model), scheduler=DDIMScheduler(**SCHEDULE, clip_sample=False)
        )
    )
    reference = pipeline(
        "pizza",
        negative_prompt="blurry",
        image=image,
        mask_image=mask,
        masked_image_latents=extra[:, 1:],
        strength=1.0,
        num_inference_steps=5,
        guidance_scale=3.0,
        latents=noise,
        height=64,
        width=64,
        output_type="latent",
    ).images
    ours = sampler.inpaint("pizza", image, mask, 1.0, "blurry", output="latent", **options)
    assert relative_error(ours, reference) < 1e-5
