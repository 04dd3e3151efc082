"""InstructPix2Pix: whole runs against diffusers, its two scales, files, sizes of pictures, and bad input."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionInstructPix2PixPipeline
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.configs import TINY
from support.controls import draw, hint
from support.reference import SCHEDULE, random_model, reference_parts, relative_error
from support.weights import same_weights
from support.zoo import averages
from torch import Tensor

import ldm_core
from ldm_core.condition import Condition
from ldm_core.conditioners import Instruction, InstructionConfig
from ldm_core.conditioners.instruction import fitted
from ldm_core.config import PRESETS
from ldm_core.guidance import ClassifierFreeGuidance, ImageAndTextGuidance
from ldm_core.loading.compvis_yaml import from_yaml
from ldm_core.loading.save import file_tensors
from ldm_core.model import LatentDiffusion
from ldm_core.nn.placement import parameter_shapes
from ldm_core.schedulers import EulerAncestral
from ldm_core.unet.names import compvis_map
from ldm_core.unet.network import UNet

RUN = 1e-5  # of latents after 10 steps, relative to the largest value
CONFIG = replace(
    TINY["sd1"], unet=replace(TINY["sd1"].unet, in_channels=8), conditioner=InstructionConfig(2), use_ema=True
)
REQUEST: dict[str, Any] = {"steps": 3, "seed": 0, "output": "latent"}


@pytest.fixture(scope="module")
def tiny() -> LatentDiffusion:
    return random_model(CONFIG)


@pytest.fixture(scope="module")
def picture() -> Tensor:
    return hint(1, 3, 32, 32)


def test_a_run_agrees_with_diffusers(tiny: LatentDiffusion, picture: Tensor) -> None:
    """A negative prompt, scales other than the defaults, and DDIM from the same noise."""
    theirs = StableDiffusionInstructPix2PixPipeline(**reference_parts(tiny), scheduler=_ddim())
    theirs.set_progress_bar_config(disable=True)
    noise = draw(1, 4, 16, 16, seed=3)
    given = {"num_inference_steps": 10, "guidance_scale": 6.0, "image_guidance_scale": 1.8}
    expected = theirs(
        "make it winter", image=picture, negative_prompt="ugly", latents=noise, output_type="latent", **given
    ).images
    sampler = ldm_core.Sampler(tiny)
    request: dict[str, Any] = {"steps": 10, "guidance_scale": 6.0, "noise": noise, "output": "latent"}
    negative: dict[str, Any] = {"negative_prompt": "ugly", "image_guidance_scale": 1.8}
    ours = sampler.edit(picture, "make it winter", **negative, **request)
    assert relative_error(ours, expected) < RUN
    assert relative_error(sampler.edit(picture, "make it winter", **request), expected) > 0.01


def _ddim() -> Any:
    return DDIMScheduler(**SCHEDULE, clip_sample=False)


# Guidance


class Recorded:
    """A network whose prediction tells the condition, with what it was called."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(self, x: Tensor, t: float, condition: Condition) -> Tensor:
        self.rows.append(len(x))
        assert condition.context is not None
        assert condition.concat is not None
        return condition.context[:, :1, :1, None] + 10 * condition.concat


SCALES = st.floats(-3, 10, allow_nan=False)


@given(SCALES, SCALES)
def test_guidance_is_the_papers_formula(text: float, image: float) -> None:
    c = torch.full((1, 1, 1), 2.0, dtype=torch.float64)
    picture = draw(1, 1, 2, 2).double()
    cond, uncond = Condition(context=c, concat=picture), Condition(context=c / 4, concat=picture)
    none = 0.5 + torch.zeros_like(picture)
    e_i, e_ti = 0.5 + 10 * picture, 2.0 + 10 * picture
    expected = none + image * (e_i - none) + text * (e_ti - e_i)
    for batched in (True, False):
        guidance = ImageAndTextGuidance(image, batched=batched)
        found = guidance(Recorded(), torch.zeros_like(picture), 5, cond, uncond, text, 0.0)
        assert torch.allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize(
    ("text", "image", "rows"),
    [(7.5, 1.5, 3), (7.5, 1.0, 2), (1.5, 1.5, 2), (1.0, 1.0, 1), (0.0, 0.0, 1), (0.0, 1.0, 1)],
)
def test_what_has_no_weight_is_not_evaluated(text: float, image: float, rows: int) -> None:
    picture = draw(1, 1, 2, 2)
    cond = Condition(context=torch.ones(1, 1, 1), concat=picture)
    uncond = Condition(context=torch.zeros(1, 1, 1), concat=picture)
    network = Recorded()
    ImageAndTextGuidance(image)(network, torch.zeros_like(picture), 5, cond, uncond, text, 0.0)
    assert network.rows == [rows]


@pytest.mark.slow
def test_special_cases(tiny: LatentDiffusion, picture: Tensor) -> None:
    """Both scales 1: the conditional prediction. The image's 1: classifier-free guidance."""
    inputs = {"prompt": "make it winter", "image": picture}
    sampler = ldm_core.Sampler(tiny)
    free = ldm_core.Sampler(tiny, guidance=ClassifierFreeGuidance())
    one = {**REQUEST, "guidance_scale": 1.0}
    alone = free.sample(inputs, **one)
    assert torch.equal(sampler.edit(picture, "make it winter", image_guidance_scale=1.0, **one), alone)
    text = sampler.edit(picture, "make it winter", image_guidance_scale=1.0, **REQUEST)
    assert torch.allclose(text, free.sample(inputs, **REQUEST), atol=1e-4)
    assert torch.equal(sampler.edit(picture, "make it winter", **REQUEST), sampler.sample(inputs, **REQUEST))
    assert sampler.guidance == ImageAndTextGuidance(1.5)
    assert type(ldm_core.Sampler(ldm_core.load()).guidance) is ClassifierFreeGuidance


def test_the_picture_joins_as_unscaled_mode(tiny: LatentDiffusion, picture: Tensor) -> None:
    condition = tiny.condition({"prompt": "", "image": picture})
    assert condition.concat is not None
    expected = tiny.encode_image(picture * 2 - 1) / tiny.config.latent_scale
    assert torch.allclose(condition.concat, expected, rtol=1e-5)
    assert tiny.condition("a prompt alone").concat is None


@pytest.mark.slow
def test_several_pictures_and_prompts(tiny: LatentDiffusion) -> None:
    sampler = ldm_core.Sampler(tiny, batch_size=2)
    pictures = hint(2, 3, 32, 32)
    noise = draw(2, 4, 16, 16)
    request = {**REQUEST, "noise": noise}
    both = sampler.edit(pictures, "winter", **request)
    one = sampler.edit(list(pictures), ["winter", "winter"], **request)
    assert torch.equal(both, one)
    alone = sampler.edit(pictures[1], "winter", **{**REQUEST, "noise": noise[1:]})
    assert torch.allclose(both[1], alone[0], atol=1e-4)
    prompts = sampler.edit(pictures[0], ["winter", "summer"], **request)
    assert torch.allclose(prompts[0], both[0], atol=1e-4)
    with pytest.raises(ValueError, match="got 2 pictures and 3 prompts"):
        sampler.edit(pictures, ["a", "b", "c"])


def test_a_pil_image_is_fitted_and_recorded(tiny: LatentDiffusion) -> None:
    photo = Image.new("RGBA", (50, 40), (200, 30, 30, 128))
    sampler = ldm_core.Sampler(tiny, EulerAncestral())
    edited = sampler.edit(photo, "make it blue", steps=1, seed=4, image_guidance_scale=1.2)[0]
    assert edited.size == (32, 28)
    wanted = {"prompt": "make it blue", "unconditional": "", "image_guidance_scale": 1.2, "seed": 4}
    recipe = edited.info["recipe"]
    assert {name: recipe[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((512, 512), (512, 512)), ((1000, 1000), (512, 512)), ((1024, 768), (512, 384)),
        ((768, 1024), (384, 512)), ((1920, 1080), (512, 320)), ((300, 200), (576, 384)),
        ((700, 500), (512, 384)),
    ],
)  # fmt: skip
def test_sizes_are_those_of_the_authors_script(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert fitted(Image.new("RGB", size)).size == expected


def test_a_narrow_picture_is_refused() -> None:
    with pytest.raises(ValueError, match="less narrow, got 3000x10 pixels"):
        fitted(Image.new("RGB", (3000, 10)))


# Files


def test_the_published_names_are_those_of_the_preset(published: Any) -> None:
    """SD1's, but for eight input channels, and the averages of them."""
    unet = PRESETS["instruct-pix2pix"].unet
    shapes = parameter_shapes(UNet, unet)
    prefix = "model.diffusion_model."
    sd1 = {
        key.removeprefix(prefix): list(shape)
        for key, shape in published["stable-diffusion/v1-inference"]["tensors"].items()
        if key.startswith(prefix)
    }
    key_map = compvis_map(unet)
    found = {
        key: list(e.transform.save(tuple(torch.empty(shapes[n], device="meta") for n in e.parameters)).shape)
        for key, e in key_map.items()
    }
    assert found == {**sd1, "input_blocks.0.0.weight": [320, 8, 3, 3]}
    assert sorted(n for e in key_map.values() for n in e.parameters) == sorted(shapes)


@pytest.mark.slow
def test_a_checkpoint_loads_with_its_averages(tiny: LatentDiffusion, picture: Tensor, tmp_path: Path) -> None:
    """As instruct-pix2pix-00-22000.ckpt: a trainer's file, of which the averaged weights are used."""
    tensors = file_tensors(tiny)
    trained = {k: v + 1 if k.startswith("model.diffusion_model.") else v for k, v in tensors.items()}
    tables = {name: torch.rand(1000) for name in ("alphas_cumprod", "posterior_variance")}
    path = tmp_path / "instruct-pix2pix-00-22000.ckpt"
    torch.save({"state_dict": {**trained, **averages(tensors), **tables}, "global_step": 22000}, path)
    loaded = ldm_core.load(path, config=CONFIG)
    assert same_weights(loaded, tiny)
    assert type(loaded.conditioner) is Instruction
    assert not same_weights(ldm_core.load(path, config=CONFIG, ema=False), tiny)
    expected = ldm_core.Sampler(tiny).edit(picture, "winter", **REQUEST)
    assert torch.equal(ldm_core.Sampler(loaded).edit(picture, "winter", **REQUEST), expected)


@pytest.mark.slow
def test_a_folder_of_diffusers_loads(tiny: LatentDiffusion, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    ldm_core.save(tiny, folder, layout="diffusers")
    loaded = ldm_core.load(folder)
    assert same_weights(loaded, tiny)
    assert loaded.config == replace(CONFIG, use_ema=False)  # folders have the averages alone
    report = ldm_core.inspect(folder)
    assert (report.sure, report.missing, report.unknown) == ("proved", (), ())
    theirs = StableDiffusionInstructPix2PixPipeline.from_pretrained(folder, local_files_only=True)
    assert theirs.unet.config.in_channels == 8


def test_the_authors_yaml() -> None:
    unet = {
        "image_size": 32, "in_channels": 8, "out_channels": 4, "model_channels": 320,
        "attention_resolutions": [4, 2, 1], "num_res_blocks": 2, "channel_mult": [1, 2, 4, 4], "num_heads": 8,
        "use_spatial_transformer": True, "transformer_depth": 1, "context_dim": 768, "use_checkpoint": True,
        "legacy": False,
    }  # fmt: skip
    ddconfig = {
        "double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
        "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0,
    }  # fmt: skip
    params = {
        "linear_start": 0.00085, "linear_end": 0.0120, "timesteps": 1000, "first_stage_key": "edited",
        "cond_stage_key": "edit", "image_size": 64, "channels": 4, "cond_stage_trainable": False,
        "conditioning_key": "hybrid", "monitor": "val/loss_simple_ema", "scale_factor": 0.18215,
        "use_ema": True,
        "unet_config": {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": unet},
        "first_stage_config": {
            "target": "ldm.models.autoencoder.AutoencoderKL", "params": {"embed_dim": 4, "ddconfig": ddconfig}
        },
        "cond_stage_config": {"target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder"},
    }  # fmt: skip
    target = "ldm.models.diffusion.ddpm_edit.LatentDiffusion"
    read = from_yaml({"model": {"target": target, "params": params}})
    assert read == PRESETS["instruct-pix2pix"]


# Bad input


def test_bad_input(tiny: LatentDiffusion, bundled: LatentDiffusion, picture: Tensor) -> None:
    sampler = ldm_core.Sampler(tiny)
    with pytest.raises(ValueError, match=r"this model edits pictures: call edit\(image"):
        sampler.txt2img("a cat", steps=1)
    with pytest.raises(ValueError, match="expected an image to edit, got none"):
        sampler.sample({"prompt": "a cat"}, steps=1)
    with pytest.raises(ValueError, match="multiples of 2, got 31x32"):
        sampler.edit(picture[..., :31], "a", steps=1)
    with pytest.raises(ValueError, match="width must be a positive multiple of 4 pixels, not 30"):
        sampler.edit(picture[..., :30], "a", steps=1)
    with pytest.raises(ValueError, match=r"expected an image of \(B, 3, H, W\)"):
        sampler.edit(picture[:, :1], "a", steps=1)
    with pytest.raises(ValueError, match="requires a model that edits pictures"):
        ldm_core.Sampler(bundled).edit(picture, "a", steps=1)
    with pytest.raises(ValueError, match=r"edit requires ImageAndTextGuidance, .* not CFGPlusPlus"):
        ldm_core.Sampler(tiny, guidance=ldm_core.guidance.CFGPlusPlus()).edit(picture, "a", steps=1)
    with pytest.raises(ValueError, match="image_scale must be a finite number"):
        sampler.edit(picture, "a", steps=1, image_guidance_scale=float("nan"))
    with pytest.raises(ValueError, match="requires a condition with concat"):
        ldm_core.Sampler(bundled, guidance=ImageAndTextGuidance()).txt2img("a cat", steps=1)
    with pytest.raises(ValueError, match=r"the unet expects 5 channels .* outputs 4"):
        replace(CONFIG, unet=replace(CONFIG.unet, in_channels=9))


@pytest.mark.slow  # SD1's size
@torch.no_grad()
def test_one_step_at_full_size() -> None:
    model = random_model(PRESETS["instruct-pix2pix"])
    theirs = StableDiffusionInstructPix2PixPipeline(**reference_parts(model), scheduler=_ddim())
    theirs.set_progress_bar_config(disable=True)
    picture, noise = hint(1, 3, 128, 128), draw(1, 4, 16, 16)
    expected = theirs(
        "make it winter", image=picture, num_inference_steps=1, latents=noise, output_type="latent"
    ).images
    sampler = ldm_core.Sampler(model)
    ours = sampler.edit(picture, "make it winter", steps=1, noise=noise, output="latent")
    assert relative_error(ours, expected) < RUN
