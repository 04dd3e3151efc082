"""diffusers folders: read whatever diffusers wrote, write what diffusers reads."""

from __future__ import annotations

import json
import logging
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import (
    random_model,
    reference_autoencoder,
    reference_text_encoder,
    reference_unet,
    relative_error,
)
from safetensors.torch import load_file, save_file
from test_load import same_weights

import ldm_core
from ldm_core.checkpoint import CheckpointError, diffusers_config, inspect, read, save
from ldm_core.checkpoint.diffusers_folder import settings as folder_settings
from ldm_core.checkpoint.diffusers_folder import stored_text_encoder
from ldm_core.config import PRESETS, ConfigError, LatentDiffusionConfig
from ldm_core.conversion import convert
from ldm_core.model import LatentDiffusion, load_part

logging.getLogger("diffusers").setLevel(logging.ERROR)


Models = dict[str, LatentDiffusion]


@pytest.fixture(scope="module")
def models() -> dict[str, LatentDiffusion]:
    return {kind: random_model(TINY[kind]) for kind in ("sd1", "sd2", "x4-upscaler")}


@pytest.fixture(scope="module")
def theirs(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that diffusers and transformers wrote themselves, of the small SD1 model."""
    return write_theirs(models["sd1"], tmp_path_factory.mktemp("theirs") / "sd1")


def write_theirs(model: LatentDiffusion, folder: Path, **options: Any) -> Path:
    from diffusers import PNDMScheduler

    save(model, folder, layout="diffusers")
    for part in ("unet", "vae", "text_encoder", "scheduler"):
        shutil.rmtree(folder / part)
    reference_unet(model).save_pretrained(folder / "unet", **options)
    vae = reference_autoencoder(model)
    vae.register_to_config(scaling_factor=model.config.latent_scale)
    vae.save_pretrained(folder / "vae", **options)
    options.pop("safe_serialization", None)  # transformers 5 writes safetensors only
    reference_text_encoder(model).save_pretrained(folder / "text_encoder", **options)
    schedule = model.config.noise_schedule
    PNDMScheduler(
        beta_start=schedule.linear_start,
        beta_end=schedule.linear_end,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        steps_offset=1,
        prediction_type=next(
            k for k, v in diffusers_config.PREDICTIONS.items() if v == model.config.prediction
        ),
    ).save_pretrained(folder / "scheduler")
    config = json.loads((folder / "unet" / "config.json").read_text())
    size = model.config.image_size // model.config.autoencoder.downsampling
    (folder / "unet" / "config.json").write_text(json.dumps({**config, "sample_size": size}))
    return folder


def from_settings(folder: dict[str, Any]) -> LatentDiffusionConfig:
    """A whole folder's settings, as `load` reads them."""
    diffusers_config.check_classes(folder)
    scheduler = folder[diffusers_config.SCHEDULER]
    parts: Any = {
        part: diffusers_config.part_config(part, folder)  # type: ignore[arg-type]
        for part in ("text_encoder", "unet", "autoencoder")
    }
    return LatentDiffusionConfig(
        **parts,
        noise_schedule=diffusers_config.noise_schedule_config(scheduler),
        prediction=diffusers_config.prediction(scheduler),
        latent_scale=folder[diffusers_config.AUTOENCODER]["scaling_factor"],
        image_size=diffusers_config.sample_size(folder) * parts["autoencoder"].downsampling,
    )


def used(config: LatentDiffusionConfig) -> LatentDiffusionConfig:
    """What a folder keeps of a configuration: the text encoder without what is never used."""
    return replace(config, text_encoder=stored_text_encoder(config))


def test_a_folder_that_diffusers_wrote(theirs: Path, models: Models) -> None:
    loaded = ldm_core.load(theirs)
    assert loaded.config == used(models["sd1"].config)
    assert same_weights(loaded, models["sd1"])
    report = inspect(theirs)
    assert (report.format, report.sure, report.missing) == ("diffusers", "proved", ())
    assert report.load == f"ldm_core.load({str(theirs)!r})"


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
    with pytest.raises(CheckpointError, match="no file of weights of the variant 'ema'"):
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
    network = load_part(ours, theirs / part, config=models["sd1"].config)  # type: ignore[arg-type]
    for (name, a), b in zip(
        network.state_dict().items(), models["sd1"].modules[ours].state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    if part == "unet":
        alone: Any = load_part("unet", theirs / "unet")
        assert alone.config == used(models["sd1"].config).unet


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


@pytest.mark.parametrize("name", PRESETS)
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
        CheckpointError, match="33 input channels and latents of 16 is of none of its pipelines"
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


BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "SDXL": ("unet/config.json", {"addition_embed_type": "text_time"}, "addition_embed_type is 'text_time'"),
    "LCM": ("unet/config.json", {"time_cond_proj_dim": 256}, "time_cond_proj_dim is 256"),
    "activation": ("unet/config.json", {"act_fn": "gelu"}, "act_fn is 'gelu'; only 'silu'"),
    "blocks": ("unet/config.json", {"down_block_types": ["DownBlock2D"]}, "are not those of"),
    "text": ("unet/config.json", {"in_channels": "4"}, "in_channels must be a whole number, not '4'"),
    "heads": ("unet/config.json", {"attention_head_dim": [1, 4]}, "neither of one number"),
    "depth": ("unet/config.json", {"transformer_layers_per_block": [1, 2]}, "one whole number for all"),
    "classes": ("unet/config.json", {"class_embed_type": "timestep"}, "class_embed_type is 'timestep'"),
    "contradiction": (
        "unet/config.json",
        {"cross_attention_dim": 128},
        "unet.context_dim: .* says 128, the tensors 64",
    ),
    "shift": ("vae/config.json", {"shift_factor": 0.1}, "shift_factor is 0.1"),
    "scale": ("vae/config.json", {"scaling_factor": "big"}, "scaling_factor is 'big'"),
    "flow": (
        "scheduler/scheduler_config.json",
        {"prediction_type": "flow_prediction"},
        "expected one of epsilon",
    ),
    "zero snr": (
        "scheduler/scheduler_config.json",
        {"rescale_betas_zero_snr": "yes"},
        "must be true or false",
    ),
    "pad": ("tokenizer/special_tokens_map.json", {"pad_token": "<pad>"}, "pad_token is '<pad>'"),
    "classes of parts": (
        "model_index.json",
        {"tokenizer": ["transformers", "XLMRobertaTokenizer"]},
        "its tokenizer is a XLMRobertaTokenizer",
    ),
    "gelu": ("text_encoder/config.json", {"hidden_act": "gelu_new"}, "activation must be"),
    "mlp": ("text_encoder/config.json", {"intermediate_size": 7}, "intermediate_size 7 is not 4"),
}


@pytest.mark.parametrize("name", BAD)
def test_settings_of_other_networks_are_refused(name: str, theirs: Path, tmp_path: Path) -> None:
    file, change, message = BAD[name]
    folder = shutil.copytree(theirs, tmp_path / "bad")
    data = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**data, **change}))
    with pytest.raises(CheckpointError, match=message):
        ldm_core.load(folder)


def test_damaged_folders(theirs: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(theirs, tmp_path / "bad")
    (folder / "unet" / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"unet/config.json: not valid JSON"):
        ldm_core.load(folder)
    (folder / "unet" / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="not a mapping but a list"):
        ldm_core.load(folder)
    shutil.rmtree(folder / "unet")
    with pytest.raises(CheckpointError, match=r"holds no U-Net.*unet=FILE"):
        ldm_core.load(folder)
    shutil.rmtree(folder / "scheduler")
    shutil.copytree(theirs / "unet", folder / "unet")
    with pytest.raises(CheckpointError, match="of no model known here"):
        ldm_core.load(folder)


@pytest.mark.parametrize("shard", ["../../vae/diffusion_pytorch_model.safetensors", "/etc/passwd", "..", ""])
def test_an_index_cannot_lead_out_of_its_folder(shard: str, theirs: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(theirs, tmp_path / "bad")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": shard}}))
    with pytest.raises(CheckpointError, match="a shard lies outside its folder"):
        read(folder)
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": "gone.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"the shard gone\.safetensors is missing"):
        read(folder)


def test_a_folder_is_not_written_over_another(models: Models, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(CheckpointError, match="is already there"):
        save(models["sd1"], tmp_path / "mine", layout="diffusers")
    with pytest.raises(CheckpointError, match="layout must be"):
        save(models["sd1"], tmp_path / "new", layout="onnx")  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="cannot be written"):
        save(models["sd1"], tmp_path / "no" / "such" / "place", layout="diffusers")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2000) | st.floats(allow_nan=True) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


SMALL_SETTINGS = json.dumps(
    {name: value for name, value in folder_settings(TINY["sd2"]).items() if "vocab" not in name}
)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_any_setting_is_read_or_refused(data: st.DataObject) -> None:
    """Whatever stands in the place of a setting, the outcome is a configuration or a CheckpointError."""
    folder = json.loads(SMALL_SETTINGS)
    for _ in range(data.draw(st.integers(1, 3))):
        file = data.draw(st.sampled_from(sorted(folder)))
        key = data.draw(st.sampled_from(sorted(folder[file])))
        folder[file][key] = data.draw(JSON)
    try:
        config = from_settings(folder)
    except (CheckpointError, ConfigError, KeyError):
        return
    assert isinstance(config, LatentDiffusionConfig)


def test_words_that_were_added_to_the_tokenizer(tmp_path: Path) -> None:
    """As diffusers' training scripts leave them: a longer table, and the words' ids in a file."""
    config = TINY["sd1"]
    wide = replace(config, text_encoder=replace(config.text_encoder, vocab_size=49410))
    model = random_model(wide)
    save(model, tmp_path / "toy", layout="diffusers")
    words = {"<cat-toy>": 49408, "sks": 49409, "<|endoftext|>": 49407}
    (tmp_path / "toy" / "tokenizer" / "added_tokens.json").write_text(json.dumps(words))
    loaded = ldm_core.load(tmp_path / "toy")
    assert loaded.tokenizer(["a <cat-toy> of SKS"])[0, 1:6].tolist() == [320, 49408, 539, 49409, 49407]
    assert same_weights(loaded, model)
    added = tmp_path / "toy" / "tokenizer" / "added_tokens.json"
    added.write_text(json.dumps({"a": "b"}))
    with pytest.raises(CheckpointError, match="a whole number for each word"):
        ldm_core.load(tmp_path / "toy")
    added.write_text(json.dumps({"Sks": 49408, "sks": 49409}))
    with pytest.warns(UserWarning, match="the words that its tokenizer adds cannot be used"):
        assert ldm_core.load(tmp_path / "toy").tokenizer(["sks"])[0, 1] < 49406


def test_a_word_of_several_vectors_stays_one_in_every_layout(tmp_path: Path) -> None:
    config = TINY["sd1"]
    wide = replace(config, text_encoder=replace(config.text_encoder, vocab_size=49411))
    save(random_model(wide), tmp_path / "toy", layout="diffusers")
    tokenizer = tmp_path / "toy" / "tokenizer"
    (tokenizer / "added_tokens.json").write_text(json.dumps({"<toy>": 49408, "<toy>_1": 49409}))
    settings = json.loads((tokenizer / "tokenizer_config.json").read_text())
    settings["added_tokens_decoder"] = {"49410": {"content": "sks"}, "49407": {"content": "<|endoftext|>"}}
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(settings))
    words = (("<toy>", (49408, 49409)), ("sks", (49410,)))
    path = tmp_path / "toy"
    for name in ("toy", "file.safetensors", "again", "last.ckpt"):
        if name != "toy":
            convert(path, tmp_path / name)
        path = tmp_path / name
        assert ldm_core.load(path).tokenizer.added_words == words, name  # type: ignore[attr-defined]
    save(ldm_core.load(path), tmp_path / "saved", layout="diffusers")
    assert ldm_core.load(tmp_path / "saved").tokenizer.added_words == words  # type: ignore[attr-defined]


def test_a_folder_without_all_of_its_parts(models: Models, tmp_path: Path) -> None:
    """What it says of the others, and of the walk, still holds."""
    model = replace(models["sd2"], config=replace(models["sd2"].config, prediction="v"))
    save(model, tmp_path / "v", layout="diffusers")
    save(model, tmp_path / "file.safetensors")
    whole = ldm_core.load(tmp_path / "v").config
    for part, folder in (("autoencoder", "vae"), ("text_encoder", "text_encoder")):
        some = shutil.copytree(tmp_path / "v", tmp_path / f"no {folder}")
        shutil.rmtree(some / folder)
        given: dict[str, Any] = {part: tmp_path / "v" / folder}
        assert ldm_core.load(some, **given).config == whole
        given = {part: tmp_path / "file.safetensors"}
        loaded = ldm_core.load(some, **given).config
        assert replace(loaded, text_encoder=whole.text_encoder) == whole
    shutil.rmtree(tmp_path / "v" / "tokenizer")
    assert ldm_core.load(tmp_path / "v").config == whole, "what SD2 pads with goes with its activation"
    (tmp_path / "v" / "vae" / "config.json").unlink()
    with pytest.raises(CheckpointError, match="vae: it has no config"):
        ldm_core.load(tmp_path / "v")


def test_a_part_whose_weights_are_not_there_is_missing(models: Models, tmp_path: Path) -> None:
    """A download of some of a folder's parts; and a file of settings that does not belong there."""
    model, folder = models["sd1"], tmp_path / "folder"
    save(model, folder, layout="diffusers")
    (folder / "config.json").write_text("{}")
    assert same_weights(ldm_core.load(folder), model)
    save(model, tmp_path / "whole.safetensors")
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    assert inspect(folder).missing == ("unet",)
    with pytest.raises(CheckpointError, match=r"holds no U-Net.*unet=FILE"):
        ldm_core.load(folder)
    assert same_weights(ldm_core.load(folder, unet=tmp_path / "whole.safetensors"), model)
    vae = load_part("autoencoder", folder).state_dict()
    assert torch.equal(vae["quant_conv.weight"], model.autoencoder.quant_conv.weight)


def test_the_text_encoder_of_a_folder_of_a_whole_clip(models: Models, tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPModel

    text = models["sd1"].config.text_encoder
    sizes = {
        "hidden_size": text.width,
        "intermediate_size": 4 * text.width,
        "num_attention_heads": text.heads,
        "num_hidden_layers": text.layers,
    }
    image = {"hidden_size": 32, "intermediate_size": 128, "num_attention_heads": 2, "num_hidden_layers": 1}
    config = CLIPConfig(text_config=sizes, vision_config={**image, "image_size": 32, "patch_size": 8})
    theirs = CLIPModel(config)
    theirs.save_pretrained(tmp_path / "clip")
    ours = load_part("text_encoder", tmp_path / "clip")
    assert (ours.config.layers, ours.config.heads) == (text.layers, text.heads)
    tokens = models["sd1"].tokenizer(["a cat"])
    with torch.no_grad():
        expected = theirs.text_model(tokens).last_hidden_state
        assert relative_error(ours(tokens), expected) < 1e-5


def test_a_part_brings_what_its_folder_says_of_it(models: Models, tmp_path: Path) -> None:
    base = tmp_path / "base.safetensors"
    save(models["sd1"], base)
    config = models["sd1"].config
    other = replace(
        config,
        unet=replace(config.unet, num_heads=2),
        text_encoder=replace(config.text_encoder, activation="gelu", heads=2),
        prediction="v",
    )
    save(replace(models["sd1"], config=other), tmp_path / "other", layout="diffusers")
    assert ldm_core.load(base, unet=tmp_path / "other").config == replace(
        config, unet=other.unet, prediction="v"
    )
    alone = tmp_path / "other" / "unet"  # without a scheduler's settings
    assert ldm_core.load(base, unet=alone, prediction="v").config.unet.num_heads == 2
    text = ldm_core.load(base, text_encoder=tmp_path / "other" / "text_encoder").config.text_encoder
    assert (text.activation, text.heads) == ("gelu", 2)
    vae = tmp_path / "other" / "vae"
    assert ldm_core.load(base, autoencoder=vae).config == config
    settings = json.loads((vae / "config.json").read_text())
    (vae / "config.json").write_text(json.dumps({**settings, "scaling_factor": 0.13025}))
    with pytest.raises(CheckpointError, match=r"latent_scale: .* says 0\.18215, the file 0\.13025"):
        ldm_core.load(base, autoencoder=vae)


def test_a_variant_that_is_not_there_is_not_ignored(theirs: Path, models: Models, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no file of weights of the variant 'fp61'"):
        ldm_core.load(theirs, variant="fp61")
    save(models["sd1"], tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match="only a diffusers folder has variants"):
        ldm_core.load(tmp_path / "x.ckpt", variant="fp16")
