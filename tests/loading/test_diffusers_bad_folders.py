"""Folders of other networks, damaged ones, parts and added words."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.configs import TINY
from support.diffusers_pipelines import Models, from_settings
from support.examples import examples
from support.reference import (
    random_model,
    relative_error,
)
from support.weights import same_weights

import ldm_core
from ldm_core.checkpoint import CheckpointError, inspect, read, save
from ldm_core.config import ConfigError, LatentDiffusionConfig
from ldm_core.loading.convert import convert
from ldm_core.loading.diffusers_folder import settings as folder_settings
from ldm_core.loading.load import load_part

BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "SDXL": ("unet/config.json", {"addition_embed_type": "text_time"}, "addition_embed_type is 'text_time'"),
    "LCM": ("unet/config.json", {"time_cond_proj_dim": 256}, "time_cond_proj_dim is 256"),
    "activation": ("unet/config.json", {"act_fn": "gelu"}, "act_fn is 'gelu'; only 'silu'"),
    "blocks": ("unet/config.json", {"down_block_types": ["DownBlock2D"]}, "are not those of"),
    "text": ("unet/config.json", {"in_channels": "4"}, "in_channels must be a whole number, not '4'"),
    "heads": ("unet/config.json", {"attention_head_dim": [1, 4]}, "the same number of heads"),
    "depth": ("unet/config.json", {"transformer_layers_per_block": [1, 2]}, "one whole number for all"),
    "classes": ("unet/config.json", {"class_embed_type": "timestep"}, "class_embed_type is 'timestep'"),
    "contradiction": (
        "unet/config.json",
        {"cross_attention_dim": 128},
        "unet.context_dim is 128 according to .*, and 64 according to the tensors",
    ),
    "shift": ("vae/config.json", {"shift_factor": 0.1}, "shift_factor is 0.1"),
    "scale": ("vae/config.json", {"scaling_factor": "big"}, "scaling_factor must be .* not 'big'"),
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
    "mlp": (
        "text_encoder/config.json",
        {"intermediate_size": 7},
        "expected intermediate_size 256, 4 × 64, not 7",
    ),
}


@pytest.mark.one_in(5)
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
    with pytest.raises(CheckpointError, match="expected a JSON mapping, not a list"):
        ldm_core.load(folder)
    shutil.rmtree(folder / "unet")
    with pytest.raises(CheckpointError, match=r"contains no U-Net.*unet=FILE"):
        ldm_core.load(folder)
    shutil.rmtree(folder / "scheduler")
    shutil.copytree(theirs / "unet", folder / "unet")
    with pytest.raises(CheckpointError, match="matches no known model"):
        ldm_core.load(folder)


@pytest.mark.parametrize("shard", ["../../vae/diffusion_pytorch_model.safetensors", "/etc/passwd", "..", ""])
def test_an_index_cannot_lead_out_of_its_folder(shard: str, theirs: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(theirs, tmp_path / "bad")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": shard}}))
    with pytest.raises(CheckpointError, match=r"the shard .* is outside of the folder"):
        read(folder)
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": "gone.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"the shard gone\.safetensors is missing"):
        read(folder)


def test_a_folder_is_not_written_over_another(models: Models, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(CheckpointError, match="already exists"):
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
    {
        name: value
        for name, value in folder_settings(TINY["sd2"]).items()
        if "vocab" not in name and name.endswith(".json")
    }
)


@given(st.data())
@examples(300)
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


@pytest.mark.slow  # every layout
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
    with pytest.raises(CheckpointError, match=r"vae: no config\.json in this folder"):
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
    with pytest.raises(CheckpointError, match=r"contains no U-Net.*unet=FILE"):
        ldm_core.load(folder)
    assert same_weights(ldm_core.load(folder, unet=tmp_path / "whole.safetensors"), model)
    vae = load_part(folder, "autoencoder").state_dict()
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
    ours = load_part(tmp_path / "clip", "text_encoder")
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
    with pytest.raises(
        CheckpointError,
        match=r"latent_scale is 0\.18215 .*, and 0\.13025 according to vae/config.json of vae",
    ):
        ldm_core.load(base, autoencoder=vae)


def test_a_variant_that_is_not_there_is_not_ignored(theirs: Path, models: Models, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weights of the variant 'fp61'"):
        ldm_core.load(theirs, variant="fp61")
    save(models["sd1"], tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match="applies to diffusers folders only"):
        ldm_core.load(tmp_path / "x.ckpt", variant="fp16")
