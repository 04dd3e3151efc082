"""The original names of CompVis's U-Net and autoencoder, as key maps made from a configuration."""

from __future__ import annotations

import re

from ldm_core.autoencoder.config import AutoencoderConfig
from ldm_core.checkpoint.key_map import BOTH, CONV_1X1, SAME, WEIGHT, KeyMap, Leaf, leaves, module
from ldm_core.unet.config import UNetConfig

UNET_RES: list[Leaf] = [
    ("in_layers.0", "norm1", BOTH, SAME),
    ("in_layers.2", "conv1", BOTH, SAME),
    ("emb_layers.1", "time_proj", BOTH, SAME),
    ("out_layers.0", "norm2", BOTH, SAME),
    ("out_layers.3", "conv2", BOTH, SAME),
]
TRANSFORMER_BLOCK: list[Leaf] = [
    *((f"norm{i}", f"norm{i}", BOTH, SAME) for i in (1, 2, 3)),
    *((f"attn{i}.to_{x}", f"attn{i}.to_{x}", WEIGHT, SAME) for i in (1, 2) for x in "qkv"),
    *((f"attn{i}.to_out.0", f"attn{i}.to_out", BOTH, SAME) for i in (1, 2)),
    ("ff.net.0.proj", "ff.proj_in", BOTH, SAME),
    ("ff.net.2", "ff.proj_out", BOTH, SAME),
]
AUTOENCODER_RES: list[Leaf] = [(x, x, BOTH, SAME) for x in ("norm1", "conv1", "norm2", "conv2")]
AUTOENCODER_ATTENTION: list[Leaf] = [
    ("norm", "norm", BOTH, SAME),
    *((x, f"attn.to_{x}", BOTH, CONV_1X1) for x in "qkv"),
    ("proj_out", "attn.to_out", BOTH, CONV_1X1),
]

# Some converters left diffusers' names in the autoencoder's attention.
_DIFFUSERS_NAMES = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_DIFFUSERS_NAME = re.compile(r"(?<=\.attn_1\.)(group_norm|to_q|to_k|to_v|to_out\.0)(?=\.)")


def original_name(key: str) -> str:
    """An autoencoder's key with the original name of its attention."""
    return _DIFFUSERS_NAME.sub(lambda found: _DIFFUSERS_NAMES[found[1]], key)


def unet_map(config: UNetConfig) -> KeyMap:
    """`UNetModel` of `ldm.modules.diffusionmodules.openaimodel`.

    Its blocks are numbered across levels: input_blocks.0 is the first convolution, then come each level's
    blocks and its downsampling. A block is a list: 0 the residual block, 1 the transformer if there is
    one, and last, at the end of a level on the way up, the upsampling.
    """
    key_map: KeyMap = {}
    key_map |= module("time_embed.0", "time_embed.linear1") | module("time_embed.2", "time_embed.linear2")
    if config.num_classes is not None:
        key_map |= leaves([("label_emb", "label_emb", WEIGHT, SAME)], "", "")
    elif config.adm_in_channels is not None:
        key_map |= module("label_emb.0.0", "label_emb.linear1")
        key_map |= module("label_emb.0.2", "label_emb.linear2")
    key_map |= module("input_blocks.0.0", "conv_in")

    levels = len(config.channel_mult)
    widths = [config.model_channels * mult for mult in config.channel_mult]
    channels, skips, number = config.model_channels, [config.model_channels], 1
    for level, width in enumerate(widths):
        for i in range(config.num_res_blocks):
            there, here = f"input_blocks.{number}", f"down.{level}.blocks.{i}"
            key_map |= _unet_block(config, there, here, level, changes_width=channels != width)
            channels, number = width, number + 1
            skips.append(width)
        if level < levels - 1:
            key_map |= module(f"input_blocks.{number}.0.op", f"down.{level}.resample.conv")
            skips.append(width)
            number += 1

    key_map |= leaves(UNET_RES, "middle_block.0.", "mid.res1.")
    key_map |= spatial_transformer_map(config, "middle_block.1.", "mid.attention.")
    key_map |= leaves(UNET_RES, "middle_block.2.", "mid.res2.")

    number = 0
    for position, (level, width) in enumerate(reversed(list(enumerate(widths)))):
        for i in range(config.num_res_blocks + 1):
            there, here = f"output_blocks.{number}", f"up.{position}.blocks.{i}"
            key_map |= _unet_block(config, there, here, level, changes_width=channels + skips.pop() != width)
            if i == config.num_res_blocks and level > 0:
                place = 2 if level in config.attention_levels else 1
                key_map |= module(f"{there}.{place}.conv", f"up.{position}.resample.conv")
            channels, number = width, number + 1

    return key_map | module("out.0", "norm_out") | module("out.2", "conv_out")


def _unet_block(config: UNetConfig, there: str, here: str, level: int, *, changes_width: bool) -> KeyMap:
    key_map = leaves(UNET_RES, f"{there}.0.", f"{here}.res.")
    if changes_width:
        key_map |= module(f"{there}.0.skip_connection", f"{here}.res.skip")
    if level in config.attention_levels:
        key_map |= spatial_transformer_map(config, f"{there}.1.", f"{here}.attention.")
    return key_map


def spatial_transformer_map(config: UNetConfig, there: str, here: str) -> KeyMap:
    """One transformer of a U-Net; diffusers kept CompVis's names within it."""
    projection = SAME if config.use_linear_in_transformer else CONV_1X1
    key_map = leaves([("norm", "norm", BOTH, SAME)], there, here)
    key_map |= leaves([(x, x, BOTH, projection) for x in ("proj_in", "proj_out")], there, here)
    for i in range(config.transformer_depth):
        key_map |= leaves(TRANSFORMER_BLOCK, f"{there}transformer_blocks.{i}.", f"{here}blocks.{i}.")
    return key_map


def autoencoder_map(config: AutoencoderConfig) -> KeyMap:
    """`AutoencoderKL` of `ldm.models.autoencoder`. Its decoder numbers its levels from fine to coarse."""
    key_map = module("quant_conv", "quant_conv") | module("post_quant_conv", "post_quant_conv")
    last = len(config.ch_mult) - 1
    for side in ("encoder", "decoder"):
        for end in ("conv_in", "norm_out", "conv_out"):
            key_map |= module(f"{side}.{end}", f"{side}.{end}")
        key_map |= leaves(AUTOENCODER_RES, f"{side}.mid.block_1.", f"{side}.mid.res1.")
        key_map |= leaves(AUTOENCODER_ATTENTION, f"{side}.mid.attn_1.", f"{side}.mid.attention.")
        key_map |= leaves(AUTOENCODER_RES, f"{side}.mid.block_2.", f"{side}.mid.res2.")

    channels = config.ch
    for level, mult in enumerate(config.ch_mult):
        there, here = f"encoder.down.{level}", f"encoder.down.{level}"
        key_map |= _autoencoder_level(config, there, here, level, channels, config.num_res_blocks)
        if level < last:
            key_map |= module(f"{there}.downsample.conv", f"{here}.resample.conv")
        channels = config.ch * mult
    for level in range(last, -1, -1):
        there, here = f"decoder.up.{level}", f"decoder.up.{last - level}"
        key_map |= _autoencoder_level(config, there, here, level, channels, config.num_res_blocks + 1)
        if level > 0:
            key_map |= module(f"{there}.upsample.conv", f"{here}.resample.conv")
        channels = config.ch * config.ch_mult[level]
    return key_map


def _autoencoder_level(
    config: AutoencoderConfig, there: str, here: str, level: int, channels: int, blocks: int
) -> KeyMap:
    key_map: KeyMap = {}
    for i in range(blocks):
        key_map |= leaves(AUTOENCODER_RES, f"{there}.block.{i}.", f"{here}.blocks.{i}.")
        if config.has_attention(level):
            key_map |= leaves(AUTOENCODER_ATTENTION, f"{there}.attn.{i}.", f"{here}.attentions.{i}.")
    if channels != config.ch * config.ch_mult[level]:
        key_map |= module(f"{there}.block.0.nin_shortcut", f"{here}.blocks.0.skip")
    return key_map
