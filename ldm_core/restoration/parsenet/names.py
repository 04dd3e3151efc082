"""The names of ParseNet's parameters in its file, as a template over the network's own names."""

from __future__ import annotations

from ldm_core.checkpoint.key_map import KeyMap, Template, expand, within
from ldm_core.nn.placement import parameter_names
from ldm_core.restoration.parsenet.config import ParseNetConfig
from ldm_core.restoration.parsenet.network import ParseNet

CONV: Template = {"conv": "conv2d", "norm": "norm.norm"}
BLOCK: Template = {
    **within("conv1.", "conv1.", CONV),
    **within("conv2.", "conv2.", CONV),
    **within("shortcut.", "shortcut_func.", CONV),
}
FACES: Template = {
    **within("encoder.{i}.", "encoder.{i}.", {**CONV, **BLOCK}),
    **within("body.{i}.", "body.{i}.", BLOCK),
    **within("decoder.{i}.", "decoder.{i}.", BLOCK),
    **within("to_mask.", "out_mask_conv.", CONV),
    **within("to_picture.", "out_img_conv.", CONV),
}


def key_map(config: ParseNetConfig) -> KeyMap:
    """The names in ParseNet's file."""
    return expand(FACES, parameter_names(ParseNet, config))
