"""A model as one file in the original layout, with exactly the keys that CompVis's and Stability AI's have.

model.diffusion_model.                       the U-Net, with flat input_blocks and output_blocks
first_stage_model.                           the autoencoder
cond_stage_model.transformer.text_model.     CLIP's text encoder in transformers' names (SD1)
cond_stage_model.model.                      the same in open_clip's names (SD2)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from ldm_core.checkpoint.key_map import KeyMap, prefixed
from ldm_core.config import LatentDiffusionConfig
from ldm_core.loading.parts import Layout, part_configs, part_of


def model_map(config: LatentDiffusionConfig) -> KeyMap:
    """The whole file; parameters are named `unet.…`, `autoencoder.…` and `text_encoder.…`."""
    return file_map(part_configs(config))


def file_map(configs: Mapping[str, Any]) -> KeyMap:
    """The file of the parts with these configurations, by slot. One part alone has no prefix in it."""
    key_map: KeyMap = {}
    for slot, config, layout, prefix in _layouts(configs):
        key_map |= prefixed(layout.key_map(config), prefix, f"{slot}.")
    return key_map


def buffers(configs: Mapping[str, Any]) -> dict[str, Tensor]:
    """What the original classes keep as buffers, and readers of their files expect."""
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
