"""A model as one file in the original layout, with exactly the keys that CompVis's and Stability AI's have.

model.diffusion_model.                       the U-Net, with flat input_blocks and output_blocks
first_stage_model.                           the KL autoencoder
cond_stage_model.transformer.text_model.     CLIP's text encoder in transformers' names (SD1)
cond_stage_model.model.                      the same in open_clip's names (SD2)
"""

from __future__ import annotations

import torch
from torch import Tensor

from ldm_core.autoencoder.names import compvis_map as autoencoder_map
from ldm_core.checkpoint.key_map import KeyMap, prefixed
from ldm_core.clip.config import TextEncoderConfig
from ldm_core.clip.names import open_clip_map, transformers_map
from ldm_core.config import LatentDiffusionConfig
from ldm_core.loading.parts import AUTOENCODER, OPEN_CLIP, TEXT_ENCODER, UNET
from ldm_core.unet.names import compvis_map as unet_map


def model_map(config: LatentDiffusionConfig) -> KeyMap:
    """The whole file; parameters are named `unet.…`, `autoencoder.…` and `text_encoder.…`."""
    text = config.text_encoder
    text_map = open_clip_map(text) if is_open_clip(text) else transformers_map(text)
    return {
        **prefixed(unet_map(config.unet), UNET, "unet."),
        **prefixed(autoencoder_map(config.autoencoder), AUTOENCODER, "autoencoder."),
        **prefixed(text_map, OPEN_CLIP if is_open_clip(text) else TEXT_ENCODER, "text_encoder."),
    }


def is_open_clip(config: TextEncoderConfig) -> bool:
    """Whether original files hold this text encoder under open_clip's names, as SD2's do.

    Its models have the exact gelu; OpenAI's, which SD1 takes from transformers, the quick one.
    """
    return config.activation == "gelu" or config.projection_dim is not None


def buffers(config: LatentDiffusionConfig) -> dict[str, Tensor]:
    """What the original classes keep as buffers, and readers of their files expect."""
    length = config.text_encoder.context_length
    if is_open_clip(config.text_encoder):
        return {OPEN_CLIP + "attn_mask": torch.full((length, length), float("-inf")).triu(1)}
    return {TEXT_ENCODER + "embeddings.position_ids": torch.arange(length)[None]}
