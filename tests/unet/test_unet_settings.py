"""What CompVis's YAML and diffusers' `config.json` say of a U-Net: read in full, or refused by name."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file, save_file
from support.configs import TINY
from support.hostile_settings import VALUES
from support.reference import relative_error

import ldm_core
from ldm_core.checkpoint import CheckpointError
from ldm_core.checkpoint.key_map import to_file
from ldm_core.errors import ConfigError
from ldm_core.loading.diffusers_folder import check_classes
from ldm_core.loading.diffusers_folder import settings as folder_settings
from ldm_core.unet import UNet, UNetConfig
from ldm_core.unet.compvis_settings import FIXED, READ, WITHOUT_EFFECT, unet_in_yaml
from ldm_core.unet.names import diffusers_map
from ldm_core.unet.settings import unet_config, unet_settings

PARAMS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "model_channels": 32,
    "num_res_blocks": 1,
    "attention_resolutions": [2],
    "num_heads": 4,
}
TEXT = {"use_spatial_transformer": True, "context_dim": 16}
OWN = UNetConfig(
    in_channels=3, out_channels=3, model_channels=32, channel_mult=(1, 2, 2), num_res_blocks=1,
    attention_resolutions=(2,), num_heads=None, num_head_channels=32, context_dim=None, resblock_updown=True,
)  # fmt: skip


def in_yaml(**changes: Any) -> UNetConfig:
    return unet_in_yaml({"unet_config": {"params": PARAMS | changes}})


def test_yaml_defaults() -> None:
    assert in_yaml() == UNetConfig(
        in_channels=3, out_channels=3, model_channels=32, channel_mult=(1, 2, 4, 8), num_res_blocks=1,
        attention_resolutions=(2,), num_heads=4, context_dim=None,
    )  # fmt: skip


def test_yaml_options_without_effect() -> None:
    harmless = {
        "image_size": 64, "use_checkpoint": True, "use_fp16": True, "use_bf16": False, "dropout": 0.1,
        "legacy": False, "dims": 2, "conv_resample": True, "n_embed": None, "use_new_attention_order": False,
        "num_heads_upsample": 4, "num_classes": None, "transformer_depth": 3,
        "disable_self_attentions": None, "disable_middle_self_attn": False,
    }  # fmt: skip
    assert in_yaml(**harmless) == in_yaml()


def test_a_head_size_in_yaml_overrides_a_number_of_heads() -> None:
    config = in_yaml(num_head_channels=16)
    assert (config.num_heads, config.num_head_channels) == (None, 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dims": 3}, "dims is 3; only 2"),
        ({"conv_resample": False}, "conv_resample is False; only True"),
        ({"use_new_attention_order": True}, "use_new_attention_order is True"),
        ({"n_embed": 16}, "n_embed is 16"),
        ({"num_attention_blocks": [1, 1]}, "num_attention_blocks is"),
        ({"disable_middle_self_attn": True, **TEXT}, "disable_middle_self_attn is True"),
        ({"num_classes": "continuous"}, "num_classes must be a number or 'sequential', not 'continuous'"),
        ({"num_classes": 2.5}, "num_classes must be an int"),
        ({"num_heads_upsample": 8}, "num_heads_upsample must be num_heads, not 8"),
        ({"num_heads": -1}, "num_heads must be an int"),
        ({"attention_type": "x"}, "unknown option 'attention_type'"),
        ({"context_dim": 16}, "context_dim requires use_spatial_transformer"),
        ({"use_spatial_transformer": True}, "use_spatial_transformer requires context_dim"),
        ({"use_spatial_transformer": "yes", "context_dim": 16}, "must be true or false, not 'yes'"),
        ({"resblock_updown": 1}, "resblock_updown must be true or false, not 1"),
        ({"use_scale_shift_norm": "no"}, "use_scale_shift_norm must be true or false, not 'no'"),
        ({"transformer_depth": [1, 2], **TEXT}, "one number for all levels"),
    ],
    ids=str,
)
def test_yaml_of_another_network_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        in_yaml(**changes)


def test_a_vector_condition_in_yaml_needs_its_size() -> None:
    with pytest.raises(KeyError, match="adm_in_channels"):
        in_yaml(num_classes="sequential")
    assert in_yaml(num_classes="sequential", adm_in_channels=9).adm_in_channels == 9


SETTINGS = unet_settings(OWN, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"downsample_type": "conv"}, "residual blocks resample at some levels and convolutions at others"),
        ({"upsample_type": "fir"}, "upsample_type is 'fir'; expected one of conv, resnet"),
        ({"down_block_types": ["SkipDownBlock2D"] * 3}, "are not those of a U-Net without context"),
        ({"down_block_types": ["AttnDownBlock2D"] * 3}, "are not those of a U-Net without context"),
        ({"block_out_channels": [32, 64]}, "are not those of a U-Net without context"),
        ({"attn_norm_num_groups": 16}, "attn_norm_num_groups is 16; only 32"),
        (
            {"attn_norm_num_groups": None, "resnet_time_scale_shift": "scale_shift"},
            "attn_norm_num_groups is None; only 32",
        ),
        ({"resnet_time_scale_shift": "spatial"}, "resnet_time_scale_shift is 'spatial'; expected one of"),
        ({"add_attention": False}, "add_attention is False; only True"),
        ({"class_embed_type": "timestep"}, "class_embed_type is 'timestep'"),
        ({"attention_head_dim": 24}, "64 channels are not divisible by num_head_channels=24"),
        ({"attention_head_dim": "8"}, "num_head_channels must be an int"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type is 'fourier'"),
        ({"norm_eps": 1e-6}, "norm_eps is 1e-06"),
    ],
    ids=str,
)
def test_settings_of_another_network_are_refused(changes: dict[str, Any], message: str) -> None:
    assert unet_config(SETTINGS) == OWN
    with pytest.raises(CheckpointError, match=f"unet/config.json: .*{message}"):
        unet_config(SETTINGS | changes)


def test_the_names_of_blocks_that_do_not_resample_are_free() -> None:
    """The coarsest level has no downsampling, and the finest no upsampling."""
    same = {
        "down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"],
        "up_block_types": ["ResnetUpsampleBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"],
    }
    assert unet_config(SETTINGS | same) == OWN
    assert unet_config(SETTINGS | {"attn_norm_num_groups": None}) == OWN


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            replace(OWN, num_heads=2, num_head_channels=None, attention_resolutions=(1, 2)),
            "heads of one size",
        ),
        (replace(OWN, adm_in_channels=8), "takes class labels, and no vectors"),
        (replace(OWN, context_dim=8), "no residual blocks that resample beside cross-attention"),
    ],
)
def test_networks_that_diffusers_does_not_have_are_not_written(config: UNetConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        unet_settings(config, 8)


def test_the_norm_of_a_network_with_cross_attention_goes_into_its_settings() -> None:
    config = replace(OWN, context_dim=16, resblock_updown=False, use_scale_shift_norm=True)
    assert unet_config(unet_settings(config, 8)) == config


OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@pytest.mark.parametrize("old", [False, True], ids=["", "names before 0.15"])
def test_a_folder_with_an_unconditional_unet(old: bool, tmp_path: Path) -> None:
    reference = UNet2DModel.from_config(SETTINGS).eval()
    reference.save_pretrained(tmp_path)
    if old:
        path = tmp_path / "diffusion_pytorch_model.safetensors"
        tensors = load_file(path)
        for name, older in OLD.items():
            tensors = {key.replace(f".{name}.", f".{older}."): value for key, value in tensors.items()}
        save_file(tensors, path)
        assert any(".proj_attn." in key for key in tensors)
    network = ldm_core.load_part(tmp_path, "unet")
    assert network.config == OWN
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert relative_error(network(x, 7), reference(x, 7).sample) < 1e-5


def test_a_file_without_settings_needs_the_heads(tmp_path: Path) -> None:
    """In both layouts; the loaded weights are in the right order if the heads are given."""
    torch.manual_seed(0)
    network = UNet(OWN).eval().requires_grad_(False)
    ldm_core.save(network, tmp_path / "stated.safetensors")
    assert ldm_core.load_part(tmp_path / "stated.safetensors", "unet").config == OWN
    save_file(load_file(tmp_path / "stated.safetensors"), tmp_path / "compvis.safetensors")
    tensors = to_file(diffusers_map(OWN), network.state_dict())
    save_file({key: value.contiguous() for key, value in tensors.items()}, tmp_path / "diffusers.safetensors")
    for layout in ("compvis", "diffusers"):
        path = tmp_path / f"{layout}.safetensors"
        with pytest.raises(CheckpointError, match="its unet matches no known model; pass config="):
            ldm_core.load_part(path, "unet")
        loaded = ldm_core.load_part(path, "unet", config=OWN).state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in network.state_dict().items())
        with pytest.raises(CheckpointError, match="resblock_updown is False"):
            ldm_core.load_part(path, "unet", config=replace(OWN, resblock_updown=False))


@pytest.mark.parametrize("kind", VALUES)
def test_odd_values_are_read_or_refused(kind: str) -> None:
    """Each setting and each option in turn: one line of an expected kind, never another error."""
    messages = []
    for name in SETTINGS:
        try:
            unet_config(SETTINGS | {name: VALUES[kind]})
        except CheckpointError as error:
            messages.append(str(error))
    assert all(message.startswith("unet/config.json") and len(message) < 500 for message in messages)
    assert len(messages) > len(SETTINGS) / 2
    for name in READ | WITHOUT_EFFECT | FIXED.keys():
        for model in ({}, TEXT):
            # `from_yaml` turns all of these into a ConfigError that names the option.
            with suppress(ConfigError, KeyError, TypeError, AttributeError):
                in_yaml(**model | {name: VALUES[kind]})


def test_the_index_of_a_folder_names_the_class_that_is_written() -> None:
    config = replace(TINY["sd1"], text_encoder=None, unet=replace(OWN, in_channels=4, out_channels=4))
    files = folder_settings(config)
    assert files["unet/config.json"]["_class_name"] == "UNet2DModel"
    assert files["model_index.json"]["unet"] == ["diffusers", "UNet2DModel"]
    check_classes(files)
    assert folder_settings(TINY["sd1"])["model_index.json"]["unet"] == ["diffusers", "UNet2DConditionModel"]


def test_settings_are_json() -> None:
    assert unet_config(json.loads(json.dumps(SETTINGS))) == OWN
