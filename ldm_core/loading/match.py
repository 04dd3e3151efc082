"""Holding configurations against what tensors prove, and recognising known models by it.

What shapes leave open is set to one fixed value on both sides (`blank`), so that a file is recognised only
if its proven part is exactly one known model's; otherwise a configuration must be given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from ldm_core.autoencoder.config import AutoencoderConfig
from ldm_core.clip.config import TextEncoderConfig
from ldm_core.config import PRESETS, LatentDiffusionConfig
from ldm_core.errors import CheckpointError
from ldm_core.loading.parts import PARTS, Part
from ldm_core.loading.shapes import PartConfig
from ldm_core.unet.config import UNetConfig

Proven = Mapping[Part, PartConfig]

HEAD_SIZE = 64  # of every published CLIP text encoder


def blank(config: Any) -> Any:
    """A part's configuration with everything that shapes cannot prove set to one fixed value."""
    if isinstance(config, TextEncoderConfig):
        return replace(config, heads=1, activation="gelu", clip_skip=0, pad_token_id=0)
    if isinstance(config, AutoencoderConfig):
        top = len(config.ch_mult) - 1
        attends = tuple(2 ** (top - level) for level in range(top + 1) if config.has_attention(level))
        return replace(config, resolution=2**top, attn_resolutions=attends)
    assert isinstance(config, UNetConfig)
    levels = config.attention_levels
    disabled = tuple(
        # Where the level is as wide as the context, both kinds of attention have the same shapes.
        bool(config.disable_self_attentions)
        and config.disable_self_attentions[level]
        and level in levels
        and config.model_channels * mult != config.context_dim
        for level, mult in enumerate(config.channel_mult)
    )
    return replace(
        config,
        num_heads=1,
        num_head_channels=None,
        attention_resolutions=tuple(2**level for level in levels),
        disable_self_attentions=disabled if any(disabled) else (),
    )


def matching_presets(proven: Proven) -> list[str]:
    """The names of the presets that have exactly the proven tensors in each of these parts."""
    return [name for name, config in PRESETS.items() if not differences(fitted(config, proven), proven)]


def differences(config: LatentDiffusionConfig, proven: Proven) -> list[str]:
    """Where a configuration contradicts the tensors, one line each; empty if it fits."""
    return [
        line
        for part in PARTS
        if part in proven
        for line in part_differences(part, getattr(config, part), proven[part])
    ]


def part_differences(part: Part, config: PartConfig, proven: PartConfig) -> list[str]:
    """`differences` for one part."""
    ours = blank(config)
    values = ((field.name, getattr(ours, field.name), getattr(proven, field.name)) for field in fields(ours))
    return [f"{part}.{name}: the configuration says {a}, the tensors {b}" for name, a, b in values if a != b]


def fitted(config: LatentDiffusionConfig, proven: Proven) -> LatentDiffusionConfig:
    """The configuration for a file that lacks what of the text encoder is never used: see `fitted_part`."""
    if "text_encoder" not in proven:
        return config
    return replace(config, text_encoder=fitted_part(config.text_encoder, proven["text_encoder"]))


def fitted_part(config: Any, proven: PartConfig) -> Any:
    """A part's configuration without what the file lacks and the part does not need.

    Many files of SD2 hold neither the text encoder's projection nor the blocks after the one whose output
    is taken; what is left gives the same numbers.
    """
    if not isinstance(config, TextEncoderConfig):
        return config
    cut = replace(config, layers=config.layers - config.clip_skip, clip_skip=0)
    candidates = (config, replace(config, projection_dim=None), cut, replace(cut, projection_dim=None))
    return next((one for one in candidates if blank(one) == proven), config)


def with_proven_text_encoder(config: LatentDiffusionConfig, proven: Proven) -> LatentDiffusionConfig:
    """CompVis's YAML files name a text encoder class and not its size: take the size from the tensors."""
    found = proven["text_encoder"]
    assert isinstance(found, TextEncoderConfig)
    if found.width % HEAD_SIZE:
        raise CheckpointError(
            f"the text encoder's width {found.width} is no multiple of CLIP's head size {HEAD_SIZE}"
        )
    named = fitted(config, proven).text_encoder
    size = replace(
        found,
        heads=found.width // HEAD_SIZE,
        activation=named.activation,
        clip_skip=named.clip_skip,
        pad_token_id=named.pad_token_id,
    )
    return replace(config, text_encoder=size)
