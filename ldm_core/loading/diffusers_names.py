"""The names of diffusers' `UNet2DConditionModel` and `AutoencoderKL`, as key maps made from a configuration.

Its blocks are grouped by level as they are here, so names differ and numbers do not. A diffusers folder
keeps each network in a subfolder of its own, without a prefix; some single files hold these names, too.
"""

from __future__ import annotations

import re

from ldm_core.autoencoder.config import AutoencoderConfig
from ldm_core.checkpoint.key_map import BOTH, SAME, WEIGHT, KeyMap, Leaf, leaves, module
from ldm_core.loading.compvis_names import AUTOENCODER_RES, spatial_transformer_map
from ldm_core.unet.config import UNetConfig

UNET_RES: list[Leaf] = [
    ("norm1", "norm1", BOTH, SAME),
    ("conv1", "conv1", BOTH, SAME),
    ("time_emb_proj", "time_proj", BOTH, SAME),
    ("norm2", "norm2", BOTH, SAME),
    ("conv2", "conv2", BOTH, SAME),
]
AUTOENCODER_ATTENTION: list[Leaf] = [
    ("group_norm", "norm", BOTH, SAME),
    *((f"to_{x}", f"attn.to_{x}", BOTH, SAME) for x in "qkv"),
    ("to_out.0", "attn.to_out", BOTH, SAME),
]

# What the autoencoder's attention was called before diffusers 0.15.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_NAME = re.compile(r"(?<=\.attentions\.)(\d+)\.(query|key|value|proj_attn)(?=\.)")


def modern_name(key: str) -> str:
    """An autoencoder's key with the present name of its attention."""
    return _OLD_NAME.sub(lambda found: f"{found[1]}.{_OLD_ATTENTION[found[2]]}", key)


def unet_map(config: UNetConfig) -> KeyMap:
    """`UNet2DConditionModel`."""
    key_map = module("time_embedding.linear_1", "time_embed.linear1")
    key_map |= module("time_embedding.linear_2", "time_embed.linear2")
    if config.num_classes is not None:
        key_map |= leaves([("class_embedding", "label_emb", WEIGHT, SAME)], "", "")
    elif config.adm_in_channels is not None:
        key_map |= module("class_embedding.linear_1", "label_emb.linear1")
        key_map |= module("class_embedding.linear_2", "label_emb.linear2")
    key_map |= module("conv_in", "conv_in")

    last = len(config.channel_mult) - 1
    widths = [config.model_channels * mult for mult in config.channel_mult]
    channels, skips = config.model_channels, [config.model_channels]
    for level, width in enumerate(widths):
        for i in range(config.num_res_blocks):
            changes = channels != width
            key_map |= _unet_block(config, f"down_blocks.{level}", f"down.{level}", i, level, changes)
            channels = width
            skips.append(width)
        if level < last:
            key_map |= module(f"down_blocks.{level}.downsamplers.0.conv", f"down.{level}.resample.conv")
            skips.append(width)

    key_map |= leaves(UNET_RES, "mid_block.resnets.0.", "mid.res1.")
    key_map |= spatial_transformer_map(config, "mid_block.attentions.0.", "mid.attention.")
    key_map |= leaves(UNET_RES, "mid_block.resnets.1.", "mid.res2.")

    for place, (level, width) in enumerate(reversed(list(enumerate(widths)))):
        for i in range(config.num_res_blocks + 1):
            changes = channels + skips.pop() != width
            key_map |= _unet_block(config, f"up_blocks.{place}", f"up.{place}", i, level, changes)
            channels = width
        if level > 0:
            key_map |= module(f"up_blocks.{place}.upsamplers.0.conv", f"up.{place}.resample.conv")
    return key_map | module("conv_norm_out", "norm_out") | module("conv_out", "conv_out")


def _unet_block(
    config: UNetConfig, there: str, here: str, number: int, level: int, changes_width: bool
) -> KeyMap:
    block = f"{here}.blocks.{number}"
    key_map = leaves(UNET_RES, f"{there}.resnets.{number}.", f"{block}.res.")
    if changes_width:
        key_map |= module(f"{there}.resnets.{number}.conv_shortcut", f"{block}.res.skip")
    if level in config.attention_levels:
        key_map |= spatial_transformer_map(config, f"{there}.attentions.{number}.", f"{block}.attention.")
    return key_map


def autoencoder_map(config: AutoencoderConfig) -> KeyMap:
    """`AutoencoderKL`. Both its sides number their levels in the order in which they are passed."""
    key_map = module("quant_conv", "quant_conv") | module("post_quant_conv", "post_quant_conv")
    last = len(config.ch_mult) - 1
    for side in ("encoder", "decoder"):
        key_map |= module(f"{side}.conv_in", f"{side}.conv_in")
        key_map |= module(f"{side}.conv_norm_out", f"{side}.norm_out")
        key_map |= module(f"{side}.conv_out", f"{side}.conv_out")
        middle = f"{side}.mid_block"
        key_map |= leaves(AUTOENCODER_RES, f"{middle}.resnets.0.", f"{side}.mid.res1.")
        key_map |= leaves(AUTOENCODER_ATTENTION, f"{middle}.attentions.0.", f"{side}.mid.attention.")
        key_map |= leaves(AUTOENCODER_RES, f"{middle}.resnets.1.", f"{side}.mid.res2.")

    channels = config.ch
    for level in range(last + 1):
        there, here = f"encoder.down_blocks.{level}", f"encoder.down.{level}"
        key_map |= _autoencoder_level(config, there, here, level, channels, config.num_res_blocks)
        if level < last:
            key_map |= module(f"{there}.downsamplers.0.conv", f"{here}.resample.conv")
        channels = config.ch * config.ch_mult[level]
    for level in range(last, -1, -1):
        there, here = f"decoder.up_blocks.{last - level}", f"decoder.up.{last - level}"
        key_map |= _autoencoder_level(config, there, here, level, channels, config.num_res_blocks + 1)
        if level > 0:
            key_map |= module(f"{there}.upsamplers.0.conv", f"{here}.resample.conv")
        channels = config.ch * config.ch_mult[level]
    return key_map


def _autoencoder_level(
    config: AutoencoderConfig, there: str, here: str, level: int, channels: int, blocks: int
) -> KeyMap:
    key_map: KeyMap = {}
    for i in range(blocks):
        key_map |= leaves(AUTOENCODER_RES, f"{there}.resnets.{i}.", f"{here}.blocks.{i}.")
        if config.has_attention(level):
            key_map |= leaves(AUTOENCODER_ATTENTION, f"{there}.attentions.{i}.", f"{here}.attentions.{i}.")
    if channels != config.ch * config.ch_mult[level]:
        key_map |= module(f"{there}.resnets.0.conv_shortcut", f"{here}.blocks.0.skip")
    return key_map
