"""Read the section of each network in CompVis's YAML configurations."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ldm_core.autoencoder.config import AutoencoderConfig
from ldm_core.clip.config import TextEncoderConfig
from ldm_core.config import SD1, SD2_BASE
from ldm_core.errors import CheckpointError, ConfigError
from ldm_core.support.limits import is_number
from ldm_core.support.printable import shown
from ldm_core.unet.config import UNetConfig

Params = Mapping[str, Any]

# A YAML file specifies its text encoder by class only.
TEXT_ENCODERS: dict[str, Any] = {
    "FrozenCLIPEmbedder": SD1.text_encoder,
    "FrozenOpenCLIPEmbedder": SD2_BASE.text_encoder,
}
HEAD_SIZE = 64  # of every published CLIP text encoder


def class_name(stage: Params) -> str:
    """The class name in a section's `target`; empty without one."""
    named = stage.get("target")
    return named.rpartition(".")[2] if isinstance(named, str) else ""


def text_encoder(params: Params) -> TextEncoderConfig:
    """`FrozenCLIPEmbedder` or `FrozenOpenCLIPEmbedder`, with the width of the U-Net's context."""
    stage = section(params, "cond_stage_config")
    target = class_name(stage)
    layer = (stage.get("params") or {}).get("layer", "last")
    skips = {"last": 0, "penultimate": 1} if target == "FrozenOpenCLIPEmbedder" else {"last": 0}
    config: TextEncoderConfig = replace(
        TEXT_ENCODERS[target], clip_skip=lookup(skips, layer, f"{target}'s layer")
    )
    width = section(params, "unet_config", "params")["context_dim"]
    # For a size other than the class's default, the tensors prove the remaining values.
    return config if width == config.width else replace(config, width=width, heads=1)


def sized_text_encoder(named: TextEncoderConfig, proven: TextEncoderConfig) -> TextEncoderConfig:
    """The named text encoder with the size that its tensors prove."""
    if proven.width % HEAD_SIZE:
        raise CheckpointError(
            f"the text encoder's width {proven.width} is not a multiple of CLIP's head size {HEAD_SIZE}"
        )
    return replace(
        proven,
        heads=proven.width // HEAD_SIZE,
        activation=named.activation,
        clip_skip=named.clip_skip,
        pad_token_id=named.pad_token_id,
    )


def unet(model: Params) -> UNetConfig:
    """`UNetModel`."""
    params = section(model, "unet_config", "params")
    if not params.get("use_spatial_transformer"):
        raise ConfigError(
            "a U-Net without use_spatial_transformer is not supported: it has no text condition"
        )
    heads, head_channels = params.get("num_heads", -1), params.get("num_head_channels", -1)
    num_classes = params.get("num_classes")
    depth = params.get("transformer_depth", 1)
    if isinstance(depth, list) or isinstance(params["num_res_blocks"], list):
        raise ConfigError("transformer_depth and num_res_blocks must be one number for all levels")
    return UNetConfig(
        in_channels=params["in_channels"],
        out_channels=params["out_channels"],
        model_channels=params["model_channels"],
        channel_mult=tuple(params.get("channel_mult", (1, 2, 4, 8))),
        num_res_blocks=params["num_res_blocks"],
        attention_resolutions=tuple(params["attention_resolutions"]),
        # In CompVis's files -1 means "not set", and a head size overrides a number of heads.
        num_heads=heads if head_channels == -1 else None,
        num_head_channels=None if head_channels == -1 else head_channels,
        transformer_depth=depth,
        context_dim=params["context_dim"],
        use_linear_in_transformer=params.get("use_linear_in_transformer", False),
        disable_self_attentions=tuple(params.get("disable_self_attentions") or ()),
        num_classes=num_classes if isinstance(num_classes, int) else None,
        adm_in_channels=params.get("adm_in_channels") if num_classes == "sequential" else None,
    )


def autoencoder(model: Params) -> AutoencoderConfig:
    """`AutoencoderKL`."""
    params = section(model, "first_stage_config", "params")
    dd = section(params, "ddconfig")
    if not dd.get("double_z", True):
        raise ConfigError("an autoencoder without double_z is not a KL autoencoder")
    return AutoencoderConfig(
        embed_dim=params["embed_dim"],
        z_channels=dd["z_channels"],
        resolution=dd["resolution"],
        in_channels=dd["in_channels"],
        out_ch=dd["out_ch"],
        ch=dd["ch"],
        ch_mult=tuple(dd["ch_mult"]),
        num_res_blocks=dd["num_res_blocks"],
        attn_resolutions=tuple(dd["attn_resolutions"]),
    )


def section(data: Any, *names: str) -> Mapping[str, Any]:
    for depth, name in enumerate(names):
        if not isinstance(data, Mapping) or not isinstance(data.get(name), Mapping):
            raise ConfigError(
                f"no section {'.'.join(names[: depth + 1])}, which CompVis's configurations have"
            )
        data = data[name]
    return data


def lookup(table: Mapping[str, Any], value: Any, name: str) -> Any:
    if not isinstance(value, str) or value not in table:
        raise ConfigError(f"{name} must be one of {', '.join(table)}, not {shown(value)}")
    return table[value]


def real(params: Mapping[str, Any], name: str, default: float) -> float:
    value = params.get(name, default)
    if isinstance(value, str):  # YAML reads 1e-4 (no decimal point) as text
        with suppress(ValueError):
            value = float(value)
    if not is_number(value):
        raise ConfigError(f"{name} must be a number, not {shown(value)}")
    return float(value)
