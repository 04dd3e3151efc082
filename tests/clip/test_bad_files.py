"""CLIP files that do not load, and what is said of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.clip_checkpoints import CONFIG, EXACT, Tensors, changed, json_file, write
from support.clip_reference import (
    open_clip_arguments,
    openai_tensors,
    transformers_clip,
    transformers_tensors,
)
from support.examples import examples

from ldm_core.checkpoint import CheckpointError
from ldm_core.clip import CLIP, CLIPConfig
from ldm_core.clip.open_clip_settings import open_clip_parts
from ldm_core.config import ConfigError

# --- what does not load ---


def test_what_the_tensors_do_not_prove_is_not_guessed(clip: CLIP, tmp_path: Path) -> None:
    path = write(tmp_path / "clip.pt", openai_tensors(clip))
    with pytest.raises(CheckpointError, match=r"number of heads and the activation .* config= a CLIPConfig"):
        CLIP.load(path)
    with pytest.raises(CheckpointError, match="unknown CLIP configuration 'ViT'"):
        CLIP.load(path, config="ViT")
    with pytest.raises(
        CheckpointError,
        match=r"contradicts the given .*: image width 768, but 64 in the tensors; .*layers 12",
    ):
        CLIP.load(path, config="ViT-B/32")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"visual__ln_pre__weight": None}, r"1 tensor\(s\) missing:\s+visual.ln_pre.weight"),
        ({"visual__proj": None}, r"missing:\s+visual.proj"),
        ({"logit_bias": torch.ones(1)}, r"not used by the model:\s+logit_bias"),
        ({"ln_final__bias": torch.ones(3)}, r"ln_final.bias: expected \(48,\), got \(3,\)"),
        ({"ln_final__bias": torch.full((48,), torch.nan)}, r"not finite:\s+ln_final.bias"),
        ({"visual__conv1__weight": torch.ones(64, 4, 32, 32)}, r"expected \(64, 3, 32, 32\), got"),
        (
            {"transformer__resblocks__0__attn__in_proj_bias": torch.ones(5)},
            "queries, keys and values stacked",
        ),
        ({"visual__conv1__weight": torch.ones(64)}, r"of the wrong shape:\s+visual.conv1.weight: \(64,\)"),
    ],
)
def test_files_that_do_not_fit(clip: CLIP, changes: Tensors, words: str, tmp_path: Path) -> None:
    path = write(tmp_path / "clip.safetensors", changed(openai_tensors(clip), **changes))
    with pytest.raises(CheckpointError, match=words):
        CLIP.load(path, config=CONFIG)


def test_files_that_are_no_whole_clip(clip: CLIP, tmp_path: Path) -> None:
    tensors = openai_tensors(clip)
    halves = {
        "image": {key: value for key, value in tensors.items() if key.startswith("visual.")},
        "text": {key: value for key, value in tensors.items() if not key.startswith("visual.")},
    }
    for half, part in halves.items():
        path = write(tmp_path / f"{half}.pt", part)
        with pytest.raises(CheckpointError, match=f"{half}.pt contains only the {half} encoder of a CLIP"):
            CLIP.load(path, config=CONFIG)
    for name, keys, words in (
        ("rn50", {"visual.layer1.0.conv1.weight": torch.ones(1)}, "a CLIP with a ResNet"),
        ("other", {"x": torch.ones(1)}, r"contains no CLIP .* \(the names in the file are 'x' …\)"),
    ):
        with pytest.raises(CheckpointError, match=words):
            CLIP.load(write(tmp_path / f"{name}.pt", keys))
    with pytest.raises(CheckpointError, match="no such file"):
        CLIP.load(tmp_path / "nowhere.pt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="not a diffusers folder"):
        CLIP.load(tmp_path / "empty")
    with pytest.raises(ValueError, match="dtype must be a floating-point type"):
        CLIP.load(tmp_path / "rn50.pt", dtype=torch.int32)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "siglip"}, "model_type is 'siglip'; expected one of clip"),
        ({"vision_config": None}, "config.json"),
        ({"text_config": {"hidden_size": 64}}, "expected intermediate_size 256, 4 × 64, not 2048"),
        (
            {"vision_config": {"hidden_size": 64, "intermediate_size": 100}},
            "expected intermediate_size 256, 4 × 64, not 100",
        ),
        ({"vision_config": {"layer_norm_eps": 1e-6}}, "layer_norm_eps is 1e-06"),
        ({"vision_config": {"num_channels": 4}}, "num_channels is 4"),
        ({"vision_config": {"hidden_act": "relu"}}, "not 'relu'"),
        ({"vision_config": {"image_size": [224, 224]}}, "image_size must be a whole number"),
        ({"text_config": {"hidden_size": "wide"}}, "text_config: hidden_size must be a whole number"),
        ({"projection_dim": 7}, "projection_dim 7, but 40 in the tensors"),
        ({"text_config": {}}, "contradicts config.json: vocab_size 49408, but 300 in the tensors"),
    ],
)
def test_folders_whose_settings_do_not_fit(clip: CLIP, change: Any, words: str, tmp_path: Path) -> None:
    reference = transformers_clip(clip)
    settings_of_it = {**reference.config.to_dict()}
    for name, value in change.items():
        inner = name.endswith("_config") and isinstance(value, dict) and name != "text_config"
        settings_of_it[name] = {**settings_of_it[name], **value} if inner else value
    json_file(tmp_path / "config.json", settings_of_it)
    write(tmp_path / "model.safetensors", transformers_tensors(clip))
    with pytest.raises(CheckpointError, match=words):
        CLIP.load(tmp_path)


def test_damaged_metadata(clip: CLIP, tmp_path: Path) -> None:
    for damage in ("{", "[]", "{}", '{"image_encoder": 3}', '{"image_encoder": {"width": []}}'):
        tensors = {key: value.clone() for key, value in openai_tensors(clip).items()}
        path = tmp_path / "clip.safetensors"
        safetensors.torch.save_file(tensors, path, metadata={"ldm_core.clip_config": damage})
        with pytest.raises(CheckpointError, match="invalid CLIP configuration"):
            CLIP.load(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3000) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


SETTINGS = open_clip_arguments(EXACT)


@examples(60)
@given(st.sampled_from(["model_cfg", "vision_cfg", "text_cfg", "preprocess_cfg"]), st.data(), JSON)
def test_settings_of_any_kind_are_read_or_refused(place: str, data: st.DataObject, value: Any) -> None:
    """Whatever stands in a settings file, there is a configuration or an error that can be caught."""
    file: dict[str, Any] = {
        "model_cfg": json.loads(json.dumps(SETTINGS)),
        "preprocess_cfg": {"mean": [0, 0, 0]},
    }
    target = file if place in file else file["model_cfg"]
    names = [place, *(target[place] if isinstance(target[place], dict) else ())]
    name = data.draw(st.sampled_from(names))
    if name == place:
        target[place] = value
    else:
        target[place][name] = value
    try:
        CLIPConfig(*open_clip_parts(file))
    except (CheckpointError, ConfigError):
        return
