"""Infer a ControlNet's configuration from the shapes of its tensors, in the author's or diffusers' names.

As for a U-Net, shapes do not prove the number of heads, which is set to 1; nor whether residuals are
averaged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace

from ldm_core.checkpoint.shapes import Shapes, children
from ldm_core.control.config import ControlNetConfig
from ldm_core.unet import shapes as unet_shapes
from ldm_core.unet.config import UNetConfig


def compvis_config(shapes: Shapes) -> ControlNetConfig:
    """From the author's names. Raises KeyError or ValueError if they form no ControlNet."""
    hint = [f"input_hint_block.{i}." for i in children(shapes, "input_hint_block.")]
    return _config(shapes, unet_shapes.compvis_config, "out.2.weight", hint)


def diffusers_config(shapes: Shapes) -> ControlNetConfig:
    """From diffusers' names. Raises KeyError or ValueError if they form no ControlNet."""
    prefix = "controlnet_cond_embedding."
    convs = [f"{prefix}blocks.{i}." for i in children(shapes, f"{prefix}blocks.")]
    return _config(shapes, unet_shapes.diffusers_config, "conv_out.weight", [f"{prefix}conv_in.", *convs])


def _config(
    shapes: Shapes, unet_config: Callable[[Shapes], UNetConfig], conv_out: str, hint: list[str]
) -> ControlNetConfig:
    """hint: the prefixes of the hint network's convolutions; a last one may be there or not."""
    if not hint:
        raise ValueError("no hint network")
    channels = _input(shapes)
    # A ControlNet has no output, whose number of channels the U-Net's configuration needs.
    unet = unet_config({**shapes, conv_out: (channels, 0, 3, 3)})
    hint_in = shapes[f"{hint[0]}weight"][1]
    convs = 2 * ((len(hint) - 1) // 2)  # two for each halving
    widths = [shapes[f"{hint[0]}weight"][0], *(shapes[f"{h}weight"][0] for h in hint[2 : convs + 1 : 2])]
    return ControlNetConfig(**asdict(unet), hint_channels=hint_in, hint_widths=tuple(widths))


def _input(shapes: Shapes) -> int:
    conv = shapes.get("input_blocks.0.0.weight") or shapes["conv_in.weight"]
    return conv[1]


def blank(config: ControlNetConfig) -> ControlNetConfig:
    """The configuration with everything that shapes cannot prove set to one fixed value."""
    unet = unet_shapes.blank(config.unet)
    return replace(config, **{**asdict(unet), "out_channels": config.in_channels}, global_pool=False)


def fewest_tensors(config: ControlNetConfig) -> int:
    """A lower bound on the number of tensors."""
    return unet_shapes.fewest_tensors(config.unet) // 3
