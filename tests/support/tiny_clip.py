"""A CLIP of one layer."""

from __future__ import annotations

import torch

import ldm_core
from ldm_core.clip import CLIPConfig
from ldm_core.config import ImageEncoderConfig, TextEncoderConfig


def tiny_clip() -> ldm_core.CLIP:
    return ldm_core.CLIP(
        CLIPConfig(
            ImageEncoderConfig(image_size=16, patch_size=8, width=32, layers=1, heads=2, projection_dim=16),
            TextEncoderConfig(context_length=8, width=32, layers=1, heads=2, projection_dim=16),
        ),
        torch.Generator().manual_seed(0),
    )
