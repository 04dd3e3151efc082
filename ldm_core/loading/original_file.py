"""A model as one file in the original layout, with exactly the keys of CompVis's and Stability AI's files.

model.diffusion_model.                       the U-Net, with flat input_blocks and output_blocks
first_stage_model.                           the autoencoder
cond_stage_model.transformer.text_model.     CLIP's text encoder in transformers' names (SD1)
cond_stage_model.model.                      open_clip's text encoder in its own names (SD2)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from ldm_core.checkpoint.key_map import KeyMap, prefixed
from ldm_core.loading.parts import Layout, part_of


def file_map(configs: Mapping[str, Any]) -> KeyMap:
    """The key map of a file of these parts, given their configurations by slot.

    Parameters are named `unet.…`, `autoencoder.…` and `text_encoder.…`. A single part has no prefix.
    """
    key_map: KeyMap = {}
    for slot, config, layout, prefix in _layouts(configs):
        key_map |= prefixed(layout.key_map(config), prefix, f"{slot}.")
    return key_map


def buffers(configs: Mapping[str, Any]) -> dict[str, Tensor]:
    """The buffers of the original classes, which readers of their files expect."""
    return {
        prefix + name: value
        for _, config, layout, prefix in _layouts(configs)
        for name, value in layout.buffers(config).items()
    }


def _layouts(configs: Mapping[str, Any]) -> Iterator[tuple[str, Any, Layout, str]]:
    for slot, config in configs.items():
        part = part_of(config)
        layout = part.layout(part.written(config))
        yield slot, config, layout, layout.original if len(configs) > 1 else ""
