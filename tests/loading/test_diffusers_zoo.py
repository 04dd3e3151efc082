"""Folders for diffusers' other pipelines: they draw our pictures, and loading gives back the model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.configs import TINY
from support.diffusers_pipelines import used
from support.reference import random_model
from support.weights import same_weights
from torch import Tensor

import ldm_core
from ldm_core.autoencoder import AutoencoderConfig, AutoencoderVQConfig
from ldm_core.bert.config import BERTConfig, LayoutConfig
from ldm_core.checkpoint import CheckpointError
from ldm_core.conditioners import (
    ClassEmbedderConfig,
    DepthConfig,
    LowResolutionConfig,
    MaskedImageConfig,
    NoisedImageConfig,
    RetrievalConfig,
    SemanticMapConfig,
    UnclipConfig,
)
from ldm_core.config import ImageEncoderConfig, LatentDiffusionConfig, NoiseScheduleConfig, UNetConfig
from ldm_core.loading.diffusers_folder import settings

CLOSE = 1e-5
UNET = UNetConfig(
    in_channels=3, out_channels=3, model_channels=32, channel_mult=(1, 2), num_res_blocks=1,
    attention_resolutions=(2,), num_heads=None, num_head_channels=16, context_dim=None,
)  # fmt: skip
VQ = AutoencoderVQConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1, n_embed=50)
LDM = LatentDiffusionConfig(
    text_encoder=None, unet=UNET, autoencoder=VQ, latent_scale=1.0, image_size=32,
    noise_schedule=NoiseScheduleConfig(linear_start=0.0015, linear_end=0.0195),
)  # fmt: skip
# Its autoencoder's factor is 8, which LDMTextToImagePipeline takes for granted.
KL_F8 = AutoencoderConfig(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1)
TEXT2IMG = replace(
    LDM,
    text_encoder=BERTConfig(width=32, layers=2),
    unet=replace(UNET, in_channels=4, out_channels=4, context_dim=32),
    autoencoder=KL_F8,
    latent_scale=0.18215,
    image_size=128,
)
SUPER_RESOLUTION = replace(LDM, unet=replace(UNET, in_channels=6), conditioner=LowResolutionConfig())
SD2, SD2_DEPTH = used(TINY["sd2"]), used(TINY["sd2-depth"])  # without what folders do not store
DEPTH = replace(SD2_DEPTH, conditioner=DepthConfig(2))
SMALL_PICTURES = NoiseScheduleConfig(timesteps=500, linear_start=0.0002, linear_end=0.03)
UPSCALER = replace(
    SD2,
    unet=replace(
        SD2.unet, in_channels=7, num_classes=10, disable_self_attentions=(True, False),
    ),
    latent_scale=0.08333,  # StableDiffusionUpscalePipeline sets it, whatever the settings are
    conditioner=NoisedImageConfig(SMALL_PICTURES, levels=9),
)  # fmt: skip
ENCODER = ImageEncoderConfig(
    image_size=28, patch_size=14, width=32, layers=2, heads=4, projection_dim=24, activation="gelu"
)
UNCLIP = replace(
    used(TINY["sd2-unclip"]), conditioner=UnclipConfig(24, image_encoder=ENCODER, statistics=True)
)
ZOO = {
    "StableUnCLIPImg2ImgPipeline": UNCLIP,
    "LDMPipeline": LDM,
    "LDMTextToImagePipeline": TEXT2IMG,
    "LDMSuperResolutionPipeline": SUPER_RESOLUTION,
    "StableDiffusionDepth2ImgPipeline": DEPTH,
    "StableDiffusionUpscalePipeline": UPSCALER,
}


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {name: random_model(config) for name, config in ZOO.items()}


@pytest.fixture(scope="module")
def folders(models: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("zoo")
    for name, model in models.items():
        ldm_core.save(model, root / name, layout="diffusers")
    return {name: root / name for name in models}


def pipeline(name: str, folders: dict[str, Path], **parts: Any) -> Any:
    import diffusers

    loaded = getattr(diffusers, name).from_pretrained(folders[name], local_files_only=True, **parts)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def noise_of(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.one_in(6)
@pytest.mark.parametrize("name", ZOO)
def test_loading_gives_back_the_model(
    name: str, models: dict[str, Any], folders: dict[str, Path], tmp_path: Path
) -> None:
    loaded = ldm_core.load(folders[name])
    assert loaded.config == used(models[name].config)
    assert same_weights(loaded, models[name])
    assert type(loaded.conditioner) is type(models[name].conditioner)
    report = ldm_core.inspect(folders[name])
    assert (report.sure, report.missing, report.unknown) == ("proved", (), ())
    ldm_core.convert(folders[name], tmp_path / "file.safetensors")
    again = ldm_core.load(tmp_path / "file.safetensors")
    assert again.config == loaded.config
    assert same_weights(again, loaded)


@pytest.mark.slow  # loads a pipeline of diffusers
def test_an_unconditional_model(models: dict[str, Any], folders: dict[str, Path]) -> None:
    theirs = pipeline("LDMPipeline", folders)
    noise = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    picture = theirs(generator=torch.Generator().manual_seed(3), num_inference_steps=4, output_type="np")
    ours = ldm_core.Sampler(models["LDMPipeline"]).sample(None, steps=4, noise=noise, output="tensor")
    assert (ours - torch.from_numpy(picture.images).permute(0, 3, 1, 2)).abs().max() < CLOSE


@pytest.mark.slow  # loads a pipeline of diffusers
def test_text_with_the_autoencoder_in_vqvae(models: dict[str, Any], folders: dict[str, Path]) -> None:
    folder = folders["LDMTextToImagePipeline"]
    assert not (folder / "vae").exists()
    assert json.loads((folder / "vqvae" / "config.json").read_text())["_class_name"] == "AutoencoderKL"
    theirs, noise = pipeline("LDMTextToImagePipeline", folders), noise_of(1, 4, 8, 8)
    request: dict[str, Any] = {"guidance_scale": 4.0, "height": 64, "width": 64}
    picture = theirs("a cat", num_inference_steps=4, latents=noise, output_type="pt", **request)
    sampler = ldm_core.Sampler(models["LDMTextToImagePipeline"])
    ours = sampler.txt2img("a cat", steps=4, noise=noise, output="tensor", **request)
    assert (ours - picture.images).abs().max() < CLOSE


@pytest.mark.slow  # loads a pipeline of diffusers
def test_super_resolution(models: dict[str, Any], folders: dict[str, Path]) -> None:
    """diffusers' default is eta 0; a tensor is in [-1, 1] there."""
    theirs = pipeline("LDMSuperResolutionPipeline", folders)
    small = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    noise = noise_of(1, 3, 16, 16)
    generator = torch.Generator().manual_seed(3)
    picture = theirs(small * 2 - 1, num_inference_steps=4, generator=generator, output_type="pt").images
    sampler = ldm_core.Sampler(models["LDMSuperResolutionPipeline"])
    ours = sampler.sample(small, steps=4, noise=noise, output="tensor")
    assert (ours - picture).abs().max() < CLOSE


@pytest.mark.slow  # loads a pipeline of diffusers
def test_depth(models: dict[str, Any], folders: dict[str, Path]) -> None:
    """The pipeline begins with noised latents of a picture even at strength 1, and adds no 0.001 to the range
    of depths. The estimator is not written, so that it must be passed, or a depth map.
    """
    theirs = pipeline(
        "StableDiffusionDepth2ImgPipeline", folders, depth_estimator=None, feature_extractor=None
    )
    generator = torch.Generator().manual_seed(1)
    picture, depth = torch.rand(1, 3, 32, 32, generator=generator), torch.rand(1, 32, 32, generator=generator)
    depth *= 1e6  # beside which 0.001 does not count
    request: dict[str, Any] = {"guidance_scale": 4.0}
    found = theirs(
        "a cat", picture, depth, 1.0, 4,
        generator=torch.Generator().manual_seed(4), output_type="pt", **request,
    ).images  # fmt: skip
    first, generator = theirs.scheduler.timesteps[:1], torch.Generator().manual_seed(4)
    noised = theirs.prepare_latents(picture * 2 - 1, first, 1, 1, torch.float32, "cpu", generator)
    ours = ldm_core.Sampler(models["StableDiffusionDepth2ImgPipeline"]).sample(
        {"prompt": "a cat", "depth": depth}, steps=4, noise=noised, output="tensor", **request
    )
    assert (ours - found).abs().max() < CLOSE


@pytest.mark.slow  # loads a pipeline of diffusers
def test_the_upscaler(models: dict[str, Any], folders: dict[str, Path]) -> None:
    """The picture's noise is ours, in the place of the pipeline's."""
    theirs = pipeline("StableDiffusionUpscalePipeline", folders)
    assert theirs.config.max_noise_level == 9
    model, noise = models["StableDiffusionUpscalePipeline"], noise_of(1, 4, 16, 16)
    small = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    inputs = {"prompt": "a cat", "image": small, "noise_level": 5}
    condition = model.conditioner(inputs, [torch.Generator().manual_seed(7)])
    drawn = torch.randn(small.shape, generator=torch.Generator().manual_seed(7))
    noised = theirs.low_res_scheduler.add_noise(small * 2 - 1, drawn, torch.tensor([5]))
    assert (condition.concat - noised).abs().max() < CLOSE
    picture = theirs(
        "a cat", small, 4, 3.0, noise_level=5, latents=noise, output_type="pt",
        generator=torch.Generator().manual_seed(7),
    ).images  # fmt: skip
    ours = ldm_core.Sampler(model).sample(
        condition=condition,
        unconditional_condition=model.condition(""),
        steps=4,
        guidance_scale=3.0,
        noise=noise,
        output="tensor",
    )
    assert (ours - picture).abs().max() < CLOSE


@pytest.mark.slow  # loads a pipeline of diffusers
def test_unclip(models: dict[str, Any], folders: dict[str, Path]) -> None:
    """The pipeline prepares pictures as CLIP does, the originals as `preprocess_stretched`: vectors agree."""
    theirs = pipeline("StableUnCLIPImg2ImgPipeline", folders)
    model, noise = models["StableUnCLIPImg2ImgPipeline"], noise_of(1, 4, 16, 16)
    assert torch.equal(theirs.image_normalizer.mean[0], model.conditioner.mean)
    assert torch.equal(theirs.image_normalizer.std[0], model.conditioner.std)
    pixels = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        vector = model.conditioner.image_encoder(pixels)
        assert (theirs.image_encoder(pixels).image_embeds - vector).abs().max() < CLOSE
    condition = model.conditioner(
        {"prompt": "a cat", "embedding": vector[0], "noise_level": 30}, [torch.Generator().manual_seed(7)]
    )
    picture = theirs(
        None, "a cat", num_inference_steps=4, guidance_scale=3.0, noise_level=30, image_embeds=vector,
        latents=noise, output_type="pt", generator=torch.Generator().manual_seed(7), height=32, width=32,
    ).images  # fmt: skip
    ours = ldm_core.Sampler(model).sample(
        condition=condition,
        unconditional_condition=model.condition(""),
        steps=4,
        guidance_scale=3.0,
        noise=noise,
        output="tensor",
    )
    assert (ours - picture).abs().max() < CLOSE


@pytest.mark.slow
def test_a_folder_of_unclip_always_has_statistics(tmp_path: Path) -> None:
    """A mean of 0 and a std of 1, without which the pipeline does not load; so for a model without any."""
    model = random_model(replace(UNCLIP, conditioner=UnclipConfig(24)))
    ldm_core.save(model, tmp_path / "model", layout="diffusers")
    loaded = ldm_core.load(tmp_path / "model")
    assert loaded.config.conditioner == UnclipConfig(24, statistics=True)
    assert (loaded.conditioner.mean.abs().max(), loaded.conditioner.std.min()) == (0, 1)
    assert same_weights(replace(loaded, conditioner=model.conditioner), replace(model, unet=loaded.unet))


CROSS = replace(UNET, context_dim=16)
REFUSED = {
    "class_embedder": replace(LDM, unet=CROSS, conditioner=ClassEmbedderConfig(5, 16)),
    "layout": replace(LDM, unet=CROSS, conditioner=LayoutConfig(16, 1)),
    "semantic_map": replace(
        LDM, unet=replace(UNET, in_channels=6), conditioner=SemanticMapConfig(5, 3)
    ),
    "retrieval": replace(LDM, unet=CROSS, conditioner=RetrievalConfig(16)),
    "masked_image": replace(
        LDM, unet=replace(UNET, in_channels=7), conditioner=MaskedImageConfig(2)
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_no_pipeline_runs_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"no pipeline has its conditioner, {kind}"):
        ldm_core.save(ldm_core.build(REFUSED[kind]), tmp_path / "model", layout="diffusers")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (replace(LDM, unet=CROSS), "attends to a context, which no pipeline without text gives it"),
        (replace(LDM, unet=replace(UNET, num_classes=5)), "takes class labels or vectors"),
        (replace(LDM, unet=replace(UNET, in_channels=6)), "6 input channels and 3 latent channels"),
        (replace(SUPER_RESOLUTION, latent_scale=0.5), "does not scale latents, and latent_scale is 0.5"),
        (replace(DEPTH, conditioner=DepthConfig(8)), "downsampling is 8, the autoencoder's 2"),
        (
            replace(TINY["sd1"], autoencoder=replace(VQ, embed_dim=4, z_channels=4)),
            "StableDiffusionPipeline has no VQ autoencoder",
        ),
    ],
    ids=["context", "labels", "channels", "scale", "depth", "vq"],
)
def test_models_that_a_pipeline_would_run_in_another_way_are_refused(
    config: LatentDiffusionConfig, expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        settings(config)


def test_super_resolution_has_no_latent_scale(folders: dict[str, Path], tmp_path: Path) -> None:
    """Its pipeline ignores the setting, which diffusers fills with Stable Diffusion's value."""
    import shutil

    folder = shutil.copytree(folders["LDMSuperResolutionPipeline"], tmp_path / "copy")
    file = folder / "vqvae" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "scaling_factor": 0.18215}))
    assert ldm_core.load(folder).config.latent_scale == 1
