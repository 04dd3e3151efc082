"""Infer an autoencoder's configuration from the shapes of its tensors, in CompVis's or diffusers' names.

The training resolution only determines which levels have attention; here it is 1 at the coarsest level.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from ldm_core.autoencoder.config import AutoencoderConfig, AutoencoderVQConfig
from ldm_core.checkpoint.shapes import Shapes, children
from ldm_core.support.limits import MAX_LEVELS

Config = TypeVar("Config", bound=AutoencoderConfig)


def _sizes(shapes: Shapes, level_name: str, block: str, attention: str) -> dict[str, Any]:
    """The fields that both autoencoders have."""
    ch, in_channels = shapes["encoder.conv_in.weight"][:2]
    levels = children(shapes, f"encoder.{level_name}.", MAX_LEVELS)
    top = levels[-1]
    prefixes = [f"encoder.{level_name}.{i}." for i in levels]
    return {
        "embed_dim": shapes["post_quant_conv.weight"][1],
        "z_channels": shapes["decoder.conv_in.weight"][1],
        "resolution": 2**top,
        "in_channels": in_channels,
        "out_ch": shapes["decoder.conv_out.weight"][0],
        "ch": ch,
        "ch_mult": tuple(shapes[f"{prefix}{block}.0.conv2.weight"][0] // ch for prefix in prefixes),
        "num_res_blocks": len(children(shapes, f"{prefixes[0]}{block}.")),
        "attn_resolutions": tuple(
            2 ** (top - i) for i, prefix in zip(levels, prefixes) if f"{prefix}{attention}.weight" in shapes
        ),
    }


def _compvis_sizes(shapes: Shapes) -> dict[str, Any]:
    return _sizes(shapes, "down", "block", "attn.0.norm")


def _diffusers_sizes(shapes: Shapes) -> dict[str, Any]:
    return _sizes(shapes, "down_blocks", "resnets", "attentions.0.group_norm")


def _with_codebook(shapes: Shapes, sizes: dict[str, Any], attention: str) -> AutoencoderVQConfig:
    codes = shapes["quantize.embedding.weight"][0]
    return AutoencoderVQConfig(**sizes, n_embed=codes, middle_attention=attention in shapes)


def compvis_config(shapes: Shapes) -> AutoencoderConfig:
    """From CompVis's names. Raises KeyError, ValueError or ZeroDivisionError if they form none."""
    return AutoencoderConfig(**_compvis_sizes(shapes))


def diffusers_config(shapes: Shapes) -> AutoencoderConfig:
    """From diffusers' names, with the same errors."""
    return AutoencoderConfig(**_diffusers_sizes(shapes))


def compvis_vq_config(shapes: Shapes) -> AutoencoderVQConfig:
    """From CompVis's names, with the same errors."""
    return _with_codebook(shapes, _compvis_sizes(shapes), "encoder.mid.attn_1.norm.weight")


def diffusers_vq_config(shapes: Shapes) -> AutoencoderVQConfig:
    """From diffusers' names, with the same errors."""
    return _with_codebook(
        shapes, _diffusers_sizes(shapes), "encoder.mid_block.attentions.0.group_norm.weight"
    )


def fewest_tensors(config: AutoencoderConfig) -> int:
    """A lower bound on the number of tensors in the blocks of encoder and decoder."""
    return 8 * len(config.ch_mult) * (2 * config.num_res_blocks + 1)


def blank(config: Config) -> Config:
    """The configuration with the resolution that is inferred from shapes."""
    top = len(config.ch_mult) - 1
    attends = tuple(2 ** (top - level) for level in range(top + 1) if config.has_attention(level))
    return replace(config, resolution=2**top, attn_resolutions=attends)
