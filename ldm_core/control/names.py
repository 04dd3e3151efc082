"""The names of a ControlNet's parameters in files, as templates over the network's own names.

compvis     `ControlNet` of `cldm/cldm.py`: the U-Net's names, and those of the added convolutions. The hint
            network is a list in which every second entry is an activation.
diffusers   `ControlNetModel`.
"""

from __future__ import annotations

from collections.abc import Callable

from ldm_core.checkpoint.key_map import KeyMap, Template, expand
from ldm_core.control.config import ControlNetConfig
from ldm_core.control.controlnet import ControlNet
from ldm_core.nn.placement import parameter_names
from ldm_core.unet import names as unet_names
from ldm_core.unet.config import UNetConfig


def compvis_map(config: ControlNetConfig) -> KeyMap:
    """The key map of the author's names."""
    convs = 2 * (len(config.hint_widths) - 1)
    template: Template = {
        "hint.conv_in": "input_hint_block.0",
        "hint.convs.{i}": "input_hint_block.{after}",
        "hint.conv_out": f"input_hint_block.{2 * (convs + 1)}",
        "zero_convs.{i}": "zero_convs.{i}.0",
        "zero_mid": "middle_block_out.0",
    }
    return _whole(config, unet_names.compvis_map, template)


def diffusers_map(config: ControlNetConfig) -> KeyMap:
    """The key map of diffusers' names."""
    template: Template = {
        "hint.conv_in": "controlnet_cond_embedding.conv_in",
        "hint.convs.{i}": "controlnet_cond_embedding.blocks.{i}",
        "hint.conv_out": "controlnet_cond_embedding.conv_out",
        "zero_convs.{i}": "controlnet_down_blocks.{i}",
        "zero_mid": "controlnet_mid_block",
    }
    return _whole(config, unet_names.diffusers_map, template)


def _whole(config: ControlNetConfig, unet_map: Callable[[UNetConfig], KeyMap], template: Template) -> KeyMap:
    """The U-Net's rows for the parameters that the network has, and those of the template for its own."""
    names = parameter_names(ControlNet, config)
    ours = [name for name in names if name.startswith(("hint.", "zero_"))]
    shared = set(names) - set(ours)
    key_map = {k: e for k, e in unet_map(config.unet).items() if set(e.parameters) <= shared}
    return key_map | expand(template, ours, lambda i=0: {"i": i, "after": 2 * (i + 1)})
