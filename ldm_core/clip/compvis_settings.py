"""The text encoder's section in CompVis's YAML configurations, `cond_stage_config`."""

from __future__ import annotations

from dataclasses import replace

from ldm_core.checkpoint.yaml_values import Params, class_name, lookup, section
from ldm_core.clip.config import SD2_TEXT_ENCODER, TextEncoderConfig
from ldm_core.errors import CheckpointError

# A YAML file specifies its text encoder by class only.
TEXT_ENCODERS = {
    "FrozenCLIPEmbedder": TextEncoderConfig(),
    "FrozenOpenCLIPEmbedder": SD2_TEXT_ENCODER,
}
HEAD_SIZE = 64  # of every published CLIP text encoder


def text_encoder_in_yaml(params: Params) -> TextEncoderConfig:
    """`FrozenCLIPEmbedder` or `FrozenOpenCLIPEmbedder`, with the width of the U-Net's context."""
    stage = section(params, "cond_stage_config")
    target = class_name(stage)
    layer = (stage.get("params") or {}).get("layer", "last")
    skips = {"last": 0, "penultimate": 1} if target == "FrozenOpenCLIPEmbedder" else {"last": 0}
    config = replace(TEXT_ENCODERS[target], clip_skip=lookup(skips, layer, f"{target}'s layer"))
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
