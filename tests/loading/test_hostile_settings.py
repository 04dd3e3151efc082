"""Settings files that lie: CompVis's YAML, CLIP's JSON, adapters' JSON; and tensors whose names do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.hostile_settings import (
    DOCUMENTS,
    NARROW,
    VALUES,
    changed,
    check_short,
    examined,
    leaves,
    refused,
    soon,
)
from support.reference import random_model
from support.wild_files import TEXT

from ldm_core.adapters.embedding_file import read_embedding
from ldm_core.adapters.peft_settings import parse_settings
from ldm_core.checkpoint import CheckpointError, save
from ldm_core.checkpoint.reader import Checkpoint
from ldm_core.clip import CLIPConfig
from ldm_core.clip.open_clip_settings import open_clip_parts
from ldm_core.clip.tokenizer import CLIPTokenizer
from ldm_core.config import SD1, ConfigError, UNetConfig
from ldm_core.loading.compvis_yaml import from_yaml, read_yaml
from ldm_core.loading.evidence import proofs
from ldm_core.loading.find import find_parts
from ldm_core.unet import UNet

YAML: dict[str, Any] = {
    "linear_start": 0.00085,
    "linear_end": 0.012,
    "timesteps": 1000,
    "image_size": 64,
    "scale_factor": 0.18215,
    "use_ema": False,
    "unet_config": {
        "params": {
            "in_channels": 4,
            "out_channels": 4,
            "model_channels": 320,
            "attention_resolutions": [4, 2, 1],
            "num_res_blocks": 2,
            "channel_mult": [1, 2, 4, 4],
            "num_heads": 8,
            "use_spatial_transformer": True,
            "transformer_depth": 1,
            "context_dim": 768,
        }
    },
    "first_stage_config": {
        "target": "ldm.models.autoencoder.AutoencoderKL",
        "params": {
            "embed_dim": 4,
            "ddconfig": {
                "z_channels": 4,
                "resolution": 256,
                "in_channels": 3,
                "out_ch": 3,
                "ch": 128,
                "ch_mult": [1, 2, 4, 4],
                "num_res_blocks": 2,
                "attn_resolutions": [],
            },
        },
    },
    "cond_stage_config": {"target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder"},
}
BOMB = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "x.yaml: anchors and aliases are not"),
        ("model: &m {params: 1}\nother: *m\n", "anchors and aliases"),
        ("model: &m {params: 1}\n", "anchors and aliases"),
        ("[" * 20_000, "not a YAML file"),
        ("model: " + "[" * 3_000 + "]" * 3_000, "not a YAML file"),
        ("#" * 100_000, "more than 65,536 bytes"),
        ("{1: 2, [3]: 4}", "not a YAML file"),
        ("? {a: 1}\n: 2", "not a YAML file"),
        ("x: 0x" + "f" * 30_000, "no section model"),
    ],
    ids=["a bomb", "an alias", "an anchor", "deep", "deep, closed", "long", "keys", "a key", "a number"],
)
def test_a_yaml_file_that_is_no_plain_one(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(text)
    assert message in refused(lambda: read_yaml(tmp_path / "x.yaml"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channel_mult": {1, 2}}, "channel_mult must be a tuple of at most 16 ints in 1..65536, not {1, 2}"),
        ({"model_channels": np.int64(64)}, "model_channels must be an int in 1..65536, not np.int64(64)"),
        ({"disable_self_attentions": {True}}, "must be a tuple of one boolean for each"),
    ],
    ids=["channel_mult", "model_channels", "disable_self_attentions"],
)
def test_a_refusal_names_the_type(fields: dict[str, Any], message: str) -> None:
    assert message in refused(lambda: UNetConfig(**fields))


def test_lists_of_sizes_become_tuples() -> None:
    config = UNetConfig(channel_mult=[1, 2], attention_resolutions=[1])  # type: ignore[arg-type]
    assert config == UNetConfig(channel_mult=(1, 2), attention_resolutions=(1,))
    assert hash(config) is not None


def test_odd_values_in_yaml() -> None:
    """NaN, infinity, halves and the rest, everywhere: a configuration, or an error of one."""
    assert from_yaml({"model": {"params": YAML}}) == SD1
    for value in (*VALUES.values(), int("f" * 9000, 16)):
        with soon():
            for place in leaves(YAML):
                try:
                    from_yaml({"model": {"params": changed(YAML, place, value)}})
                except ConfigError as error:
                    check_short(error)


OPEN_CLIP: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 512,
        "quick_gelu": False,
        "vision_cfg": {"image_size": 224, "patch_size": 32, "width": 768, "layers": 12},
        "text_cfg": {"width": 512, "layers": 12, "heads": 8, "vocab_size": 49408, "context_length": 77},
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
}
ADAPTER: dict[str, Any] = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 8,
    "rank_pattern": {"to_k": 8},
    "alpha_pattern": {"to_k": 8},
    "use_rslora": False,
    "init_lora_weights": True,
}


def test_odd_values_in_json() -> None:
    """Of open_clip, of this package's CLIP files, and of PEFT."""
    parts = open_clip_parts(OPEN_CLIP)
    ours = CLIPConfig(*parts).to_dict()
    assert CLIPConfig.from_dict(json.loads(json.dumps(ours))) == CLIPConfig(*parts)
    for value in VALUES.values():
        with soon():
            for valid, read in (
                (OPEN_CLIP, open_clip_parts),
                (ours, CLIPConfig.from_dict),
                (ADAPTER, lambda values: parse_settings(values, "x").scale("to_k", None)),
            ):
                for place in leaves(valid):
                    try:
                        read(changed(valid, place, value))  # type: ignore[operator]
                    except (CheckpointError, ConfigError) as error:
                        check_short(error)


@pytest.mark.parametrize("rank", [0.5, True, 2**62, 1e-320, float("nan"), -1])
def test_a_rank_that_is_no_whole_number(rank: Any) -> None:
    refused(lambda: parse_settings({**ADAPTER, "r": rank}, "adapter_config.json"))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_settings_of_a_lora_in_its_metadata(document: str, tmp_path: Path) -> None:
    from ldm_core.adapters.lora import apply_lora

    path = tmp_path / "x.safetensors"
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    pair = {f"{name}.lora_A.weight": torch.ones(4, 32), f"{name}.lora_B.weight": torch.ones(64, 4)}
    save_file(pair, path, {"lora_adapter_metadata": DOCUMENTS[document]})
    model = random_model(replace(NARROW, text_encoder=replace(NARROW.text_encoder, vocab_size=10)))
    refused(lambda: apply_lora(model, path))


def test_learned_words_that_are_too_long(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for tensors in ({"a" * 4000: torch.ones(8)}, {"<toy>": torch.ones(100_000, 2)}):
        save_file(tensors, path)
        assert "at most 1024 vectors and a name of at most 256 characters" in refused(
            lambda: read_embedding(path)
        )
    words = tuple((f"w{i}", (CLIPTokenizer.vocab_size + i,)) for i in range(20_000))
    assert "at most 1024 added words, got 20,000" in refused(lambda: CLIPTokenizer(added_words=words))


EMPTY = torch.ones(0)
NAMES: dict[str, dict[str, torch.Tensor]] = {
    "a level of 10**11": {"first_stage_model.encoder.down.99999999999.block.0.conv2.weight": EMPTY},
    "10,000 levels": {f"first_stage_model.encoder.down.{i}.x": EMPTY for i in range(10_000)},
    "blocks by the square": {
        **{f"first_stage_model.encoder.down.{i}.block.0.conv2.weight": torch.ones(32, 1) for i in range(16)},
        **{f"first_stage_model.encoder.down.0.block.{i}.x": EMPTY for i in range(64)},
    },
    "10,000 layers": {f"{TEXT}encoder.layers.{i}.x": EMPTY for i in range(10_000)},
    "10,000 input blocks": {f"model.diffusion_model.input_blocks.{i}.x": EMPTY for i in range(10_000)},
    "a transformer by the cube": {
        f"model.diffusion_model.middle_block.1.transformer_blocks.{i}.x": EMPTY for i in range(250)
    },
    "wide without a value": {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(2**40, 4, 0, 3)},
}  # fmt: skip


@pytest.mark.one_in(5)
@pytest.mark.parametrize("name", NAMES)
def test_names_that_describe_a_large_network(name: str, tmp_path: Path) -> None:
    import ldm_core

    path = tmp_path / "x.safetensors"
    save(random_model(NARROW), path)
    save_file({**load_file(path), **NAMES[name]}, path)
    refused(lambda: ldm_core.load(path))
    examined(path)


def test_a_few_names_of_a_large_network_are_refused_before_it_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """267 tensors prove 1,279 transformer blocks, which have 51,190 tensors and take seconds to build."""
    shapes = {"input_blocks.0.0.weight": (32, 4, 3, 3), "out.2.weight": (4, 32, 3, 3)}
    shapes["middle_block.1.proj_in.weight"] = (32, 32, 1, 1)
    shapes["middle_block.1.transformer_blocks.0.attn2.to_k.weight"] = (32, 8)
    shapes |= {f"middle_block.1.transformer_blocks.{i}.x": (1,) for i in range(255)}
    for i in range(1, 5):
        shapes[f"input_blocks.{i}.0.out_layers.3.weight"] = (32, 32, 3, 3)
        shapes[f"input_blocks.{i}.1.transformer_blocks.0.attn1.to_k.weight"] = (32, 32)
    tensors = {
        f"model.diffusion_model.{key}": torch.empty(shape, device="meta") for key, shape in shapes.items()
    }
    parts = find_parts(Checkpoint(tmp_path / "x.ckpt", "pickle", tensors, {}))
    monkeypatch.setattr(UNet, "__init__", lambda *args: pytest.fail("the network is built"))
    assert "only 267 of at least 51,090 tensors" in refused(lambda: proofs(parts))
