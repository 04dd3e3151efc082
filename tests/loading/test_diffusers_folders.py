"""diffusers folders: read whatever diffusers wrote, write what diffusers reads."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.configs import TINY
from support.diffusers_pipelines import Models, from_settings, used, write_theirs
from support.reference import (
    random_model,
    reference_unet,
    relative_error,
)
from support.weights import same_weights

import ldm_core
from ldm_core.checkpoint import CheckpointError, inspect, save
from ldm_core.config import PRESETS
from ldm_core.loading.diffusers_folder import settings as folder_settings
from ldm_core.loading.load import load_part


def test_a_folder_that_diffusers_wrote(theirs: Path, models: Models) -> None:
    loaded = ldm_core.load(theirs)
    assert loaded.config == used(models["sd1"].config)
    assert same_weights(loaded, models["sd1"])
    report = inspect(theirs)
    assert (report.format, report.sure, report.missing) == ("diffusers", "proved", ())
    assert report.load == f"ldm_core.load({str(theirs)!r})"


@pytest.mark.one_in(5)
@pytest.mark.parametrize(
    "options",
    [
        {"safe_serialization": False},
        {"variant": "fp16"},
        {"safe_serialization": False, "variant": "fp16"},
        {"max_shard_size": "500KB"},
        {"max_shard_size": "500KB", "variant": "fp16"},
        {"max_shard_size": "500KB", "safe_serialization": False},
    ],
    ids=str,
)
def test_every_way_that_diffusers_writes_weights(
    options: dict[str, Any], models: Models, tmp_path: Path
) -> None:
    folder = write_theirs(models["sd1"], tmp_path / "model", **options)
    files = [file.name for file in (folder / "unet").iterdir()]
    assert any(("bin" in name) == ("safe_serialization" in options) for name in files if "json" not in name)
    assert ("max_shard_size" in options) == any("index" in name for name in files)
    assert ("variant" in options) == any("fp16" in name for name in files)
    assert same_weights(ldm_core.load(folder), models["sd1"])


def test_the_wanted_variant_is_taken(theirs: Path, models: Models, tmp_path: Path) -> None:
    folder = shutil.copytree(theirs, tmp_path / "both")
    other = random_model(TINY["sd1"], seed=5)
    reference_unet(other).save_pretrained(folder / "unet", variant="ema")
    assert same_weights(ldm_core.load(folder), models["sd1"])
    assert same_weights(ldm_core.load(folder, variant="ema"), replace(models["sd1"], unet=other.unet))
    for part in ("unet", "vae", "text_encoder"):
        for file in (folder / part).glob("*.safetensors"):
            file.unlink()
    with pytest.raises(CheckpointError, match="no weights of the variant 'ema'"):
        ldm_core.load(folder, variant="ema")


def test_the_old_names_of_the_autoencoders_attention(theirs: Path, models: Models, tmp_path: Path) -> None:
    folder = shutil.copytree(theirs, tmp_path / "old")
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for key, value in load_file(file).items():
        for new, name in old.items():
            key = re.sub(rf"(attentions\.0\.){re.escape(new)}\.", rf"\g<1>{name}.", key)
        tensors[key] = value
    assert any("query" in key for key in tensors)
    save_file(tensors, file)
    assert same_weights(ldm_core.load(folder), models["sd1"])


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_part_from_a_folder(part: str, theirs: Path, models: Models) -> None:
    ours = {"vae": "autoencoder"}.get(part, part)
    network = load_part(theirs / part, ours, config=models["sd1"].config)  # type: ignore[arg-type]
    for (name, a), b in zip(
        network.state_dict().items(), models["sd1"].modules[ours].state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    if part == "unet":
        alone: Any = load_part(theirs / "unet", "unet")
        assert alone.config == used(models["sd1"].config).unet


@pytest.mark.one_in(5)
@pytest.mark.parametrize("kind", ["sd1", "sd2", "x4-upscaler"])
def test_written_then_read(kind: str, models: Models, tmp_path: Path) -> None:
    model = models[kind]
    save(model, tmp_path / "out", layout="diffusers")
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    loaded = ldm_core.load(tmp_path / "out")
    assert loaded.config == used(model.config)
    for part in ("unet", "autoencoder", "text_encoder"):
        ours, theirs = loaded.modules[part].state_dict(), model.modules[part].state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    tokens = model.tokenizer(["a cat", "two dogs, a very long prompt about dogs"])
    assert torch.equal(loaded.tokenizer(["a cat", "two dogs, a very long prompt about dogs"]), tokens)
    assert torch.equal(loaded.text_encoder(tokens), model.text_encoder(tokens))


# Their conditioners, or the heads of the U-Net, are not those of any pipeline.
NO_PIPELINE = (
    *("cin256", "cin256-v2", "layout2img256", "semantic-synthesis256", "semantic-synthesis512"),
    *("inpainting-big", "rdm768", "lsun-churches256"),
)


def test_the_index_names_a_version() -> None:
    """StableDiffusionInpaintPipeline.from_pretrained raises KeyError without."""
    index = folder_settings(TINY["sd1-inpaint"])["model_index.json"]
    assert index["_class_name"] == "StableDiffusionInpaintPipeline"
    assert index["_diffusers_version"]


@pytest.mark.one_in(5)
@pytest.mark.parametrize("name", [name for name in PRESETS if name not in NO_PIPELINE])
def test_settings_say_all_of_a_configuration(name: str) -> None:
    config = PRESETS[name]
    assert from_settings(json.loads(json.dumps(folder_settings(config)))) == used(config)


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_diffusers_reads_what_is_written(kind: str, models: Models, tmp_path: Path) -> None:
    """Every part by its own class, without a missing or an unexpected tensor, and the same numbers."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    model = models[kind]
    save(model, tmp_path / "out", layout="diffusers")
    unet, info = UNet2DConditionModel.from_pretrained(tmp_path / "out" / "unet", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    vae, info = AutoencoderKL.from_pretrained(tmp_path / "out" / "vae", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    text, info = CLIPTextModel.from_pretrained(tmp_path / "out" / "text_encoder", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "out" / "tokenizer")
    prompts = ["a cat, 2 dogs", "an emoji \U0001f600 of joy"]
    ids = tokenizer(prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    tokens = model.tokenizer(prompts)
    assert torch.equal(ids.input_ids, tokens)
    with torch.no_grad():
        context = model.text_encoder(tokens)
        assert relative_error(text(tokens).last_hidden_state, context) < 1e-5
        x, z = torch.randn(2, 4, 16, 16), torch.randn(1, 4, 8, 8)
        assert relative_error(unet(x, 7, context).sample, model.unet(x, 7, context)) < 1e-5
        assert relative_error(vae.decode(z).sample, model.autoencoder.decode(z)) < 1e-5


def test_the_real_pipeline_draws_the_same_picture(models: Models, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    save(models["sd1"], tmp_path / "sd1", layout="diffusers")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "sd1")
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
    settings: dict[str, Any] = {"guidance_scale": 4.0, "height": 32, "width": 32}
    again = ldm_core.load(tmp_path / "sd1")
    ours, same = (
        ldm_core.Sampler(model).txt2img("a cat", steps=10, noise=noise, output="tensor", **settings)
        for model in (models["sd1"], again)
    )
    theirs = pipeline("a cat", num_inference_steps=10, latents=noise, output_type="pt", **settings).images
    assert (ours - theirs).abs().max() < 1e-4
    assert torch.equal(ours, same)


def test_a_terminal_snr_of_zero_is_read_and_written(tmp_path: Path) -> None:
    from diffusers import DDIMScheduler

    schedule = replace(TINY["sd1"].noise_schedule, zero_terminal_snr=True)
    model = random_model(replace(TINY["sd1"], noise_schedule=schedule, prediction="v"))
    save(model, tmp_path / "folder", layout="diffusers")
    theirs = DDIMScheduler.from_pretrained(tmp_path / "folder", subfolder="scheduler")
    assert theirs.config["prediction_type"] == "v_prediction"
    ours = model.noise_schedule.alphas_cumprod
    torch.testing.assert_close(theirs.alphas_cumprod.double(), ours, rtol=1e-5, atol=1e-7)
    assert ours[-1] == theirs.alphas_cumprod[-1] == 0
    loaded = ldm_core.load(tmp_path / "folder")
    assert loaded.config == model.config
    assert torch.equal(loaded.noise_schedule.betas, model.noise_schedule.betas)


@pytest.mark.slow
def test_latents_of_other_channels_in_the_real_pipeline(tmp_path: Path) -> None:
    """f=8 and 4 channels are Stable Diffusion's; the paper's f=16 has 16."""
    from diffusers import StableDiffusionPipeline

    config = replace(
        TINY["sd1"],
        unet=replace(TINY["sd1"].unet, in_channels=16, out_channels=16),
        autoencoder=replace(TINY["sd1"].autoencoder, z_channels=16, embed_dim=16),
    )
    model = random_model(config)
    save(model, tmp_path / "wide", layout="diffusers")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "wide")
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(3))
    settings: dict[str, Any] = {"guidance_scale": 4.0, "height": 32, "width": 32}
    ours = ldm_core.Sampler(model).txt2img("a cat", steps=5, noise=noise, output="tensor", **settings)
    theirs = pipeline("a cat", num_inference_steps=5, latents=noise, output_type="pt", **settings).images
    assert (ours - theirs).abs().max() < 1e-4
    assert ldm_core.load(tmp_path / "wide").config == config

    odd = random_model(replace(config, unet=replace(config.unet, in_channels=33)))
    with pytest.raises(
        CheckpointError, match="no pipeline takes a U-Net with 33 input channels and 16 latent channels"
    ):
        save(odd, tmp_path / "odd", layout="diffusers")


@pytest.mark.parametrize("part", ["U-Net", "autoencoder"])
def test_a_first_level_that_diffusers_cannot_build_is_refused(part: str, tmp_path: Path) -> None:
    """diffusers' first convolution has the first level's channels; CompVis's may have fewer."""
    tiny = TINY["sd1"]
    config = {
        "U-Net": replace(tiny, unet=replace(tiny.unet, channel_mult=(2, 2))),
        "autoencoder": replace(tiny, autoencoder=replace(tiny.autoencoder, ch_mult=(2, 2))),
    }[part]
    expected = rf"its {part}s are as wide .* this one has 32 channels before, 64 in it"
    with pytest.raises(CheckpointError, match=expected):
        save(random_model(config), tmp_path / "model", layout="diffusers")
    assert not list(tmp_path.iterdir())
