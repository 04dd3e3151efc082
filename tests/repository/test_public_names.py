"""The public names that other code calls, each used once as it is documented."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.configs import TINY
from support.reference import random_model

import ldm_core
from ldm_core.model import LatentDiffusion


@pytest.fixture(scope="module")
def model() -> LatentDiffusion:
    return random_model(TINY["sd1"])


def test_a_model_and_its_parts(model: LatentDiffusion) -> None:
    tokens = model.tokenizer(["a cat"])
    assert (tokens.shape, tokens.dtype) == ((1, 77), torch.int64)
    context = model.text_encoder(tokens)
    assert context.shape == (1, 77, 64)
    assert torch.equal(model.condition(["a cat"]).context, context)
    assert model.conditioner.tokenizer is model.tokenizer
    x = torch.zeros(1, 4, 16, 16)
    assert model.unet(x, torch.tensor([3]), context).shape == model.unet(x, 3, context).shape == x.shape
    posterior = model.autoencoder.encode(torch.zeros(1, 3, 32, 32))
    draw = posterior.sample(torch.Generator().manual_seed(0))
    assert posterior.mean.shape == posterior.std.shape == posterior.mode().shape == draw.shape
    assert model.autoencoder.decode(draw).shape == (1, 3, 32, 32)
    assert model.decode_latent(model.encode_image(torch.zeros(1, 3, 32, 32))).shape == (1, 3, 32, 32)
    assert model.noise_schedule.alphas_cumprod.shape == (1000,)
    assert model.noise_schedule.alphas_cumprod.dtype == torch.float64
    assert isinstance(model.config, ldm_core.config.LatentDiffusionConfig)


def test_the_parts_stand_alone() -> None:
    config = TINY["sd1"]
    assert ldm_core.unet.UNet(config.unet).config == config.unet
    assert ldm_core.autoencoder.AutoencoderKL(config.autoencoder).config == config.autoencoder
    assert ldm_core.text_encoder.CLIPTextEncoder(config.text_encoder).config == config.text_encoder
    assert ldm_core.tokenizer.CLIPTokenizer()("a").shape == (1, 77)
    for name in ("SD1", "SD1_INPAINT", "SD2_BASE", "SD2_V"):
        assert isinstance(getattr(ldm_core.config, name), ldm_core.config.LatentDiffusionConfig)


@pytest.mark.parametrize(
    ("task", "arguments"),
    [
        (
            "txt2img",
            "prompt negative_prompt steps guidance_scale height width num_images seed noise on_step output",
        ),
        (
            "img2img",
            "prompt image strength negative_prompt steps guidance_scale num_images seed noise on_step output",
        ),
        (
            "inpaint",
            "prompt image mask strength negative_prompt steps guidance_scale num_images seed noise on_step "
            "output",
        ),
    ],
)
def test_arguments_stay_in_their_order(task: str, arguments: str) -> None:
    found = list(inspect.signature(getattr(ldm_core.Sampler, task)).parameters)
    assert found[1:-1] == arguments.split()


def test_the_sampler_draws(model: LatentDiffusion) -> None:
    sampler = ldm_core.Sampler(model, scheduler=ldm_core.DDIM())
    picture = Image.new("RGB", (32, 32), "red")
    mask = Image.new("L", (32, 32), 255)
    common: dict[str, Any] = {"steps": 2, "seed": 1}
    images = [
        sampler.txt2img("a", **common)[0],
        sampler.img2img("a", picture, strength=0.75, **common)[0],
        sampler.inpaint("a", picture, mask, **common)[0],
        sampler.sample("a", **common)[0],
        sampler.sample(condition=model.condition("a"), **common)[0],
    ]
    assert [image.size for image in images] == [(32, 32)] * 5
    assert images[3] == images[0]
    assert images[4].tobytes() == images[0].tobytes()
    for step in sampler.steps("a", **common):
        assert step.latent.shape == step.x0.shape == (1, 4, 16, 16)
        assert step.index < step.total == 2
    for scheduler in (ldm_core.DDPM(), ldm_core.DDIM(eta=0.5), ldm_core.PNDM()):
        assert len(ldm_core.Sampler(model, scheduler).txt2img("a", **common)) == 1


def test_files(model: LatentDiffusion, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    ldm_core.save(model, path)
    assert ldm_core.inspect(path).load is not None
    assert ldm_core.load(path, device="cpu", dtype=None, config=None, ema=False).config == model.config
    assert isinstance(ldm_core.load_part(path, "unet"), ldm_core.unet.UNet)
    assert ldm_core.checkpoint.save is ldm_core.save
    assert ldm_core.checkpoint.inspect is ldm_core.inspect
    assert "betas" not in ldm_core.checkpoint.read(path).tensors
    with pytest.raises(ldm_core.checkpoint.CheckpointError) as error:
        ldm_core.load(tmp_path)
    assert isinstance(error.value, ValueError)
    changed = replace(model, unet=lambda x, t, context: x)
    assert changed.conditioner is model.conditioner


def test_dir_lists_what_is_public_and_nothing_else() -> None:
    assert {"load", "save", "inspect", "Sampler", "Condition", "config", "testing", "training"} <= set(
        dir(ldm_core)
    )
    assert not [name for name in dir(ldm_core) if name.startswith("_") or not hasattr(ldm_core, name)]
    assert "import_module" not in dir(ldm_core)
    assert len(repr(ldm_core.load())) < 300


def test_loaded_weights_require_no_gradients() -> None:
    assert not any(p.requires_grad for m in ldm_core.load().modules.values() for p in m.parameters())
    assert ldm_core.load().to(torch.bfloat16).dtype == torch.bfloat16
