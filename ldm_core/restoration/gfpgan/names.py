"""The names of GFPGAN's parameters in its files, as templates over the network's own names."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ldm_core.checkpoint.key_map import KeyMap, Template, Transform, expand, same, within
from ldm_core.nn.placement import parameter_names
from ldm_core.restoration.gfpgan.config import GFPGANConfig
from ldm_core.restoration.gfpgan.network import GFPGAN


def _from_map(x: Tensor) -> Tensor:
    if x.ndim != 4 or (x.shape[0], *x.shape[2:]) != (1, 1, 1):
        raise ValueError(f"expected a bias (1, C, 1, 1), got {tuple(x.shape)}")
    return x.flatten()


# (1, C, 1, 1) in the file, (C,) in the network.
BIAS_MAP = Transform("bias map <-> bias", lambda x: (_from_map(x),), lambda xs: xs[0][None, :, None, None])

MODULATED: Template = {
    "conv.weight": "modulated_conv.weight",
    "conv.modulation": "modulated_conv.modulation",
}
RGB: Template = {**MODULATED, "bias": "bias"}
DECODER: Template = {
    "constant": "constant_input.weight",
    **within("first_rgb.", "to_rgb1.", RGB),
    **within("to_rgb.{i}.", "to_rgbs.{i}.", RGB),
    "noises.{i}": "noises.noise{i}",
}
COMMON: Template = {
    "to_styles": "final_linear",
    "to_rgb.{i}": "toRGB.{i}",
    "scale.{i}.{j}": "condition_scale.{i}.{twice}",
    "shift.{i}.{j}": "condition_shift.{i}.{twice}",
    **within("decoder.", "stylegan_decoder.", DECODER),
}


def _decoder(style: Template, mapping: str) -> Template:
    rows = {
        **within("first.", "style_conv1.", style),
        **within("convs.{i}.", "style_convs.{i}.", style),
        "mapping.layers.{i}": mapping,
    }
    return within("decoder.", "stylegan_decoder.", rows)


CLEAN: Template = {
    **COMMON,
    "first": "conv_body_first",
    **within("down.{i}.", "conv_body_down.{i}.", same("conv1", "conv2", "skip")),
    "final_conv": "final_conv",
    **within("up.{i}.", "conv_body_up.{i}.", same("conv1", "conv2", "skip")),
    **_decoder({**MODULATED, "noise_weight": "weight", "bias": ("bias", BIAS_MAP)}, "style_mlp.{odd}"),
}
# Convolution, activation with the bias, and blur are modules of their own.
SCALED: Template = {
    **COMMON,
    "first.weight": "conv_body_first.0.weight",
    "first.bias": "conv_body_first.1.bias",
    "final_conv.weight": "final_conv.0.weight",
    "final_conv.bias": "final_conv.1.bias",
    **within(
        "down.{i}.",
        "conv_body_down.{i}.",
        {
            "conv1.weight": "conv1.0.weight",
            "conv1.bias": "conv1.1.bias",
            "conv2.weight": "conv2.1.weight",
            "conv2.bias": "conv2.2.bias",
            "skip": "skip.1",
        },
    ),
    **within(
        "up.{i}.",
        "conv_body_up.{i}.",
        {
            "conv1.weight": "conv1.0.weight",
            "conv1.bias": "conv1.1.bias",
            "conv2.weight": "conv2.weight",
            "conv2.bias": "conv2.activation.bias",
            "skip": "skip",
        },
    ),
    **_decoder({**MODULATED, "noise_weight": "weight", "bias": "activate.bias"}, "style_mlp.{next}"),
}


def key_map(config: GFPGANConfig) -> KeyMap:
    """The names in the files of this variant."""
    return expand(SCALED if config.scaled else CLEAN, parameter_names(GFPGAN, config), _numbers)


def _numbers(i: int = 0, j: int = 0) -> Mapping[str, int]:
    """Module 0 of the mapping network is the norm; every other one is an activation in the clean variant."""
    return {"i": i, "twice": 2 * j, "next": i + 1, "odd": 2 * i + 1}
