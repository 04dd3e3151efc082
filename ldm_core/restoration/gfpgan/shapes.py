"""Infer GFPGAN's configuration from the shapes of its tensors."""

from __future__ import annotations

from dataclasses import replace

from ldm_core.checkpoint.shapes import Shapes, children
from ldm_core.restoration.gfpgan.config import GFPGANConfig, Variant
from ldm_core.support.limits import MAX_LEVELS

DECODER = "stylegan_decoder."
AT_64 = 4  # the index of the width for 64 pixels
MULTIPLIER_2 = 512  # that width with a channel multiplier of 2


def clean_config(shapes: Shapes) -> GFPGANConfig:
    """From the names of the clean variant. Raises KeyError or ValueError for shapes that form none."""
    return _config(shapes, "clean")


def scaled_config(shapes: Shapes) -> GFPGANConfig:
    """From the names of the other variants, with the same errors."""
    return blank(_config(shapes, "original"))


def blank(config: GFPGANConfig) -> GFPGANConfig:
    """The configuration with the variant that tensors prove.

    The bilinear variant has the tensors of the original one. Of the two, the original one was published with
    a channel multiplier of 1, and the bilinear one's is 2, so the widths decide unless the file states it.
    """
    if config.variant == "clean":
        return config
    at_64 = config.widths[AT_64] if len(config.widths) > AT_64 else 0
    return replace(config, variant="bilinear" if at_64 == MULTIPLIER_2 else "original")


def _config(shapes: Shapes, variant: Variant) -> GFPGANConfig:
    convs = children(shapes, f"{DECODER}style_convs.", 2 * MAX_LEVELS)
    names = ["style_conv1", *(f"style_convs.{i}" for i in convs[::2])]
    widths = tuple(shapes[f"{DECODER}{name}.modulated_conv.weight"][1] for name in names)
    style_dim = shapes[f"{DECODER}style_conv1.modulated_conv.modulation.weight"][1]
    return GFPGANConfig(widths, style_dim, len(children(shapes, f"{DECODER}style_mlp.")), variant)


def fewest_tensors(config: GFPGANConfig) -> int:
    """A lower bound on the number of tensors."""
    return 40 * (len(config.widths) - 1)
