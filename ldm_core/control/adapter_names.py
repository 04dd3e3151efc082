"""The names of T2I-Adapters, style adapters and fusers in files, and what their shapes prove.

original    the authors' files. A full adapter numbers its blocks across levels.
diffusers   `T2IAdapter`, which groups them by level
"""

from __future__ import annotations

from typing import Any

from ldm_core.checkpoint.key_map import KeyMap, Template, expand, same, within
from ldm_core.checkpoint.setting_values import Settings, one_of, reading, whole, wholes
from ldm_core.checkpoint.shapes import Shapes, children
from ldm_core.clip.names import OPEN_CLIP_BLOCK
from ldm_core.control.coadapter import CoAdapterFuser, FuserConfig, StyleAdapter, StyleAdapterConfig
from ldm_core.control.t2i_adapter import LIGHTER, T2IAdapter, T2IAdapterConfig
from ldm_core.errors import ConfigError
from ldm_core.nn.placement import parameter_names

DOWNSAMPLING = 8  # which the names of an adapter's tensors do not tell; SDXL's adapters have 16
_BLOCK: Template = {"conv1": "block1", "conv2": "block2"}
_SETTINGS = "config.json"


def original_map(config: T2IAdapterConfig) -> KeyMap:
    """The key map of the authors' names."""
    blocks = config.num_res_blocks
    full: Template = {
        "conv_in": "conv_in",
        "levels.{l}.in_conv": "body.{first}.in_conv",
        **within("levels.{l}.blocks.{i}.", "body.{n}.", _BLOCK),
    }
    light: Template = {
        "levels.{l}.in_conv": "body.{l}.in_conv",
        "levels.{l}.out_conv": "body.{l}.out_conv",
        **within("levels.{l}.blocks.{i}.", "body.{l}.body.{i}.", _BLOCK),
    }

    def numbers(l: int = 0, i: int = 0) -> dict[str, int]:  # noqa: E741
        return {"l": l, "i": i, "first": l * blocks, "n": l * blocks + i}

    template = full if config.kind == "full" else light
    return expand(template, parameter_names(T2IAdapter, config), numbers)


def diffusers_map(config: T2IAdapterConfig) -> KeyMap:
    """The key map of diffusers' names."""
    template: Template = {
        "conv_in": "adapter.conv_in",
        "levels.{l}.in_conv": "adapter.body.{l}.in_conv",
        "levels.{l}.out_conv": "adapter.body.{l}.out_conv",
        **within("levels.{l}.blocks.{i}.", "adapter.body.{l}.resnets.{i}.", _BLOCK),
    }
    return expand(template, parameter_names(T2IAdapter, config))


def original_config(shapes: Shapes) -> T2IAdapterConfig:
    """From the authors' names. Raises KeyError or ValueError if they form no adapter."""
    numbers = children(shapes, "body.")
    if "conv_in.weight" not in shapes:
        return _config("light", shapes, [f"body.{n}." for n in numbers], "body.")
    # The first change of channels is the first block of the second level.
    widths = [shapes[f"body.{n}.block1.weight"][0] for n in numbers]
    changes = [n for n in numbers[1:] if f"body.{n}.in_conv.weight" in shapes]
    blocks = changes[0] if changes else 2
    return _checked(
        T2IAdapterConfig(*_hint(shapes["conv_in.weight"][1]), tuple(widths[::blocks]), blocks, DOWNSAMPLING)
    )


def diffusers_config(shapes: Shapes) -> T2IAdapterConfig:
    """From diffusers' names. Raises KeyError or ValueError if they form no adapter."""
    levels = [f"adapter.body.{n}." for n in children(shapes, "adapter.body.")]
    kind = "full" if "adapter.conv_in.weight" in shapes else "light"
    return _config(kind, shapes, levels, "resnets.")


def _config(kind: Any, shapes: Shapes, levels: list[str], blocks: str) -> T2IAdapterConfig:
    first = shapes["adapter.conv_in.weight"] if kind == "full" else shapes[f"{levels[0]}in_conv.weight"]
    widths = [shapes[f"{level}{blocks}0.block1.weight"][0] for level in levels]
    factor = 1 if kind == "full" else LIGHTER
    count = len(children(shapes, f"{levels[0]}{blocks}"))
    channels = tuple(factor * width for width in widths)
    return _checked(T2IAdapterConfig(*_hint(first[1]), channels, count, DOWNSAMPLING, kind))


def _hint(channels: int) -> tuple[int]:
    """The hint's channels, whose pixels of 8 x 8 are the channels of the first convolution."""
    if channels % DOWNSAMPLING**2:
        raise ValueError(f"{channels} input channels are no hint of {DOWNSAMPLING} x {DOWNSAMPLING} pixels")
    return (channels // DOWNSAMPLING**2,)


def _checked(config: T2IAdapterConfig) -> T2IAdapterConfig:
    if config.hint_channels in (4, 12):  # 16 x 16 pixels of one or three channels
        raise ConfigError("a T2I-Adapter for Stable Diffusion XL, which is not supported")
    return config


def adapter_config(settings: Settings) -> T2IAdapterConfig:
    """From diffusers' settings of `T2IAdapter`."""
    kinds = {"full_adapter": "full", "light_adapter": "light"}
    settings = {"adapter_type": "full_adapter", "downscale_factor": 8, "num_res_blocks": 2, **settings}
    with reading(_SETTINGS):
        kind = one_of(_SETTINGS, "adapter_type", settings["adapter_type"], kinds)
        channels = wholes("channels", settings.get("channels", [320, 640, 1280, 1280]))
        if kind == "light":  # the class lists the last width of four levels once
            channels = [*channels, channels[-1]]
        factor = whole(settings, "downscale_factor")
        return T2IAdapterConfig(
            whole({"in_channels": 3, **settings}, "in_channels"),
            tuple(channels),
            whole(settings, "num_res_blocks"),
            factor,
            kind,
        )


def style_map(config: StyleAdapterConfig) -> KeyMap:
    """The key map of the authors' names, spelled as there."""
    template: Template = {
        "style": "style_embedding",
        "pre_norm": "ln_pre",
        **within("blocks.{i}.", "transformer_layes.{i}.", OPEN_CLIP_BLOCK),
        "post_norm": "ln_post",
        "projection": "proj",
    }
    return expand(template, parameter_names(StyleAdapter, config))


def style_config(shapes: Shapes) -> StyleAdapterConfig:
    """From the authors' names. Raises KeyError or ValueError if they form no style adapter."""
    width, context_dim = shapes["proj"]
    layers = len(children(shapes, "transformer_layes."))
    return StyleAdapterConfig(width, context_dim, shapes["style_embedding"][1], layers)


def fuser_map(config: FuserConfig) -> KeyMap:
    """The key map of the authors' names."""
    template: Template = {
        **same("task_embedding", "positional_embedding"),
        "inputs.{l}": "spatial_feat_mapping.{l}.1",
        "pre_norm": "ln_pre",
        **within("blocks.{i}.", "transformer_layes.{i}.", OPEN_CLIP_BLOCK),
        "post_norm": "ln_post",
        "outputs.{l}": "spatial_ch_projs.{l}",
        "style_projection": "seq_proj",
    }
    return expand(template, parameter_names(CoAdapterFuser, config))


def fuser_config(shapes: Shapes) -> FuserConfig:
    """From the authors' names. Raises KeyError or ValueError if they form no fuser."""
    levels = children(shapes, "spatial_ch_projs.")
    channels = tuple(shapes[f"spatial_ch_projs.{n}.weight"][0] for n in levels)
    return FuserConfig(channels, shapes["seq_proj"][0], len(children(shapes, "transformer_layes.")))
