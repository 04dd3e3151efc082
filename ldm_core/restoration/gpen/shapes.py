"""Infer GPEN's configuration from the shapes of its tensors."""

from __future__ import annotations

from ldm_core.checkpoint.shapes import Shapes, children
from ldm_core.restoration.gpen.config import GPENConfig
from ldm_core.support.limits import MAX_LEVELS


def gpen_config(shapes: Shapes) -> GPENConfig:
    """Raises KeyError or ValueError for shapes that form no GPEN."""
    convs = children(shapes, "generator.convs.", 2 * MAX_LEVELS)
    names = ["conv1", *(f"convs.{i}" for i in convs[::2])]
    widths = tuple(shapes[f"generator.{name}.conv.weight"][1] for name in names)
    style_dim = shapes["generator.conv1.conv.modulation.weight"][1]
    return GPENConfig(widths, style_dim, len(children(shapes, "generator.style.")))


def fewest_tensors(config: GPENConfig) -> int:
    """A lower bound on the number of tensors."""
    return 19 * (len(config.widths) - 1)
