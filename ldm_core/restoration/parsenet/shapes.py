"""Infer ParseNet's configuration from the shapes of its tensors."""

from __future__ import annotations

from ldm_core.checkpoint.shapes import Shapes, children
from ldm_core.restoration.parsenet.config import ParseNetConfig
from ldm_core.support.limits import MAX_LEVELS


def parsenet_config(shapes: Shapes) -> ParseNetConfig:
    """Raises KeyError or ValueError for shapes that form no ParseNet."""
    blocks = children(shapes, "encoder.", MAX_LEVELS)
    widths = [shapes["encoder.0.conv2d.weight"][0]]
    widths += [shapes[f"encoder.{i}.conv1.conv2d.weight"][0] for i in blocks[1:]]
    classes = shapes["out_mask_conv.conv2d.weight"][0]
    return ParseNetConfig(tuple(widths), len(children(shapes, "body.")), classes)


def fewest_tensors(config: ParseNetConfig) -> int:
    """A lower bound on the number of tensors."""
    return 28 * (len(config.widths) - 1) + 12 * config.depth
