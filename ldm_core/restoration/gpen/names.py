"""The names of GPEN's parameters in its files, as a template over the network's own names."""

from __future__ import annotations

from collections.abc import Mapping

from ldm_core.checkpoint.key_map import KeyMap, Template, expand, within
from ldm_core.nn.placement import parameter_names
from ldm_core.restoration.gpen.config import GPENConfig
from ldm_core.restoration.gpen.network import GPEN

STYLE: Template = {
    "conv.weight": "conv.weight",
    "conv.modulation": "conv.modulation",
    "conv.kernel": "conv.blur.kernel",
    "map_weight": "noise.weight",
    "bias": "activate.bias",
}
RGB: Template = {
    "conv.weight": "conv.weight",
    "conv.modulation": "conv.modulation",
    "bias": "bias",
    "kernel": "upsample.kernel",
}
FACES: Template = {
    "first.weight": "ecd0.0.0.weight",
    "first.bias": "ecd0.0.1.bias",
    **within(
        "down.{i}.",
        "ecd{next}.0.",
        {"kernel": "0.kernel", "conv.weight": "1.weight", "conv.bias": "2.bias"},
    ),
    "to_style": "final_linear.0",
    "mapping.layers.{i}": "generator.style.{next}",  # module 0 is the norm
    "constant": "generator.input.input",
    **within("first_conv.", "generator.conv1.", STYLE),
    **within("convs.{i}.", "generator.convs.{i}.", STYLE),
    **within("first_rgb.", "generator.to_rgb1.", RGB),
    **within("to_rgb.{i}.", "generator.to_rgbs.{i}.", RGB),
}


def key_map(config: GPENConfig) -> KeyMap:
    """The names in GPEN's files."""
    return expand(FACES, parameter_names(GPEN, config), _numbers)


def _numbers(i: int = 0) -> Mapping[str, int]:
    return {"i": i, "next": i + 1}
