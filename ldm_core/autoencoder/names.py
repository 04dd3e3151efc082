"""The names of the autoencoders' parameters in files, as templates over the networks' own names.

compvis     `AutoencoderKL` and `VQModel` of `ldm.models.autoencoder`. The decoder numbers its levels from
            fine to coarse.
diffusers   `AutoencoderKL` and `VQModel`. Encoder and decoder number their levels in the order of
            computation.

Older files have other names for some parameters: `original_name` and `modern_name` give the current ones.
"""

from __future__ import annotations

import re

from ldm_core.autoencoder.config import AutoencoderConfig, AutoencoderVQConfig
from ldm_core.autoencoder.kl import AutoencoderKL
from ldm_core.autoencoder.vq import AutoencoderVQ
from ldm_core.checkpoint.key_map import CONV_1X1, KeyMap, Template, expand, same, within
from ldm_core.nn.placement import parameter_names

COMPVIS_RES: Template = {**same("norm1", "conv1", "norm2", "conv2"), "skip": "nin_shortcut"}
COMPVIS_ATTENTION: Template = {
    "norm": "norm",
    "attn.to_q": ("q", CONV_1X1),
    "attn.to_k": ("k", CONV_1X1),
    "attn.to_v": ("v", CONV_1X1),
    "attn.to_out": ("proj_out", CONV_1X1),
}
COMPVIS_LEVEL: Template = {
    **within("blocks.{i}.", "block.{i}.", COMPVIS_RES),
    **within("attentions.{i}.", "attn.{i}.", COMPVIS_ATTENTION),
}
COMPVIS_SIDE: Template = {
    **same("conv_in", "norm_out", "conv_out"),
    **within("mid.res1.", "mid.block_1.", COMPVIS_RES),
    **within("mid.attention.", "mid.attn_1.", COMPVIS_ATTENTION),
    **within("mid.res2.", "mid.block_2.", COMPVIS_RES),
}
CODEBOOK: Template = {"codebook": "quantize.embedding.weight"}
COMPVIS: Template = {
    **same("quant_conv", "post_quant_conv"),
    **CODEBOOK,
    **within("encoder.", "encoder.", COMPVIS_SIDE),
    **within("encoder.down.{l}.", "encoder.down.{l}.", COMPVIS_LEVEL),
    "encoder.down.{l}.resample.conv": "encoder.down.{l}.downsample.conv",
    **within("decoder.", "decoder.", COMPVIS_SIDE),
    **within("decoder.up.{l}.", "decoder.up.{from_fine}.", COMPVIS_LEVEL),
    "decoder.up.{l}.resample.conv": "decoder.up.{from_fine}.upsample.conv",
}

DIFFUSERS_RES: Template = {**same("norm1", "conv1", "norm2", "conv2"), "skip": "conv_shortcut"}
DIFFUSERS_ATTENTION: Template = {
    "norm": "group_norm",
    "attn.to_q": "to_q",
    "attn.to_k": "to_k",
    "attn.to_v": "to_v",
    "attn.to_out": "to_out.0",
}
DIFFUSERS_LEVEL: Template = {
    **within("blocks.{i}.", "resnets.{i}.", DIFFUSERS_RES),
    **within("attentions.{i}.", "attentions.{i}.", DIFFUSERS_ATTENTION),
}
DIFFUSERS_SIDE: Template = {
    "conv_in": "conv_in",
    **within("mid.res1.", "mid_block.resnets.0.", DIFFUSERS_RES),
    **within("mid.attention.", "mid_block.attentions.0.", DIFFUSERS_ATTENTION),
    **within("mid.res2.", "mid_block.resnets.1.", DIFFUSERS_RES),
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
}
DIFFUSERS: Template = {
    **same("quant_conv", "post_quant_conv"),
    **CODEBOOK,
    **within("encoder.", "encoder.", DIFFUSERS_SIDE),
    **within("encoder.down.{l}.", "encoder.down_blocks.{l}.", DIFFUSERS_LEVEL),
    "encoder.down.{l}.resample.conv": "encoder.down_blocks.{l}.downsamplers.0.conv",
    **within("decoder.", "decoder.", DIFFUSERS_SIDE),
    **within("decoder.up.{l}.", "decoder.up_blocks.{l}.", DIFFUSERS_LEVEL),
    "decoder.up.{l}.resample.conv": "decoder.up_blocks.{l}.upsamplers.0.conv",
}


def _parameters(config: AutoencoderConfig) -> list[str]:
    if isinstance(config, AutoencoderVQConfig):
        return parameter_names(AutoencoderVQ, config)
    return parameter_names(AutoencoderKL, config)


def compvis_map(config: AutoencoderConfig) -> KeyMap:
    """The key map of CompVis's names."""
    coarsest = len(config.ch_mult) - 1

    def numbers(l: int = 0, i: int = 0) -> dict[str, int]:  # noqa: E741
        return {"l": l, "i": i, "from_fine": coarsest - l}

    return expand(COMPVIS, _parameters(config), numbers)


def diffusers_map(config: AutoencoderConfig) -> KeyMap:
    """The key map of diffusers' names."""
    return expand(DIFFUSERS, _parameters(config))


# Some converters kept diffusers' names for the attention in files with CompVis's names.
_DIFFUSERS_NAMES = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_DIFFUSERS_NAME = re.compile(r"(?<=\.attn_1\.)(group_norm|to_q|to_k|to_v|to_out\.0)(?=\.)")
# The names of the attention before diffusers 0.15.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_NAME = re.compile(r"(?<=\.attentions\.)(\d+)\.(query|key|value|proj_attn)(?=\.)")


def original_name(key: str) -> str:
    """A key in CompVis's names with the original name of its attention."""
    return _DIFFUSERS_NAME.sub(lambda found: _DIFFUSERS_NAMES[found[1]], key)


def modern_name(key: str) -> str:
    """A key in diffusers' names with the current name of its attention."""
    return _OLD_NAME.sub(lambda found: f"{found[1]}.{_OLD_ATTENTION[found[2]]}", key)
