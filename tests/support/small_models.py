"""Small models of every kind of conditioner: the published configurations with networks of a few channels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

import ldm_core
from ldm_core.bert.config import LayoutConfig
from ldm_core.conditioners import ClassEmbedderConfig, RetrievalConfig, SemanticMapConfig, UnclipConfig
from ldm_core.config import PRESETS, LatentDiffusionConfig, TextEncoderConfig

WIDTH = 16  # of contexts and embeddings
CONDITIONERS: dict[type[Any], Any] = {
    ClassEmbedderConfig: lambda own: replace(own, width=WIDTH),
    LayoutConfig: lambda own: LayoutConfig(WIDTH, 1),
    SemanticMapConfig: lambda own: replace(own, classes=6),
    RetrievalConfig: lambda own: RetrievalConfig(WIDTH),
    UnclipConfig: lambda own: UnclipConfig(WIDTH),
}
KINDS = {
    "unconditional": "lsun-churches256",
    "class": "cin256-v2",
    "class-unguided": "cin256",
    "layout": "layout2img256",
    "map": "semantic-synthesis256",
    "sr": "bsr-sr",
    "x4": "x4-upscaler",
    "inpainting": "inpainting-big",
    "depth": "sd2-depth",
    "retrieval": "rdm768",
    "unclip": "sd2-unclip-l",
    "edit": "instruct-pix2pix",
    "boxes": "gligen",
}


def small_config(preset: str) -> LatentDiffusionConfig:
    """A published configuration with a U-Net of two levels, and 32 x 32 pixels."""
    config = PRESETS[preset]
    shrink = CONDITIONERS.get(type(config.conditioner), lambda own: own)
    text = config.text_encoder and TextEncoderConfig(width=WIDTH, layers=1, heads=2)
    attends = config.unet.context_dim is not None
    unet = replace(
        config.unet,
        model_channels=32,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(2,),
        transformer_depth=1,
        num_heads=2,
        num_head_channels=None,
        context_dim=WIDTH if attends else None,
        adm_in_channels=config.unet.adm_in_channels and 2 * WIDTH,
        disable_self_attentions=config.unet.disable_self_attentions and (True, False),
    )
    levels = (1,) * len(config.autoencoder.ch_mult)
    changes: dict[str, Any] = {"n_embed": 32} if hasattr(config.autoencoder, "n_embed") else {}
    autoencoder = replace(config.autoencoder, ch=32, ch_mult=levels, num_res_blocks=1, **changes)
    return replace(
        config,
        text_encoder=text,
        unet=unet,
        autoencoder=autoencoder,
        conditioner=shrink(config.conditioner),
        image_size=2 ** (len(levels) + 2),
    )


def small_model(kind: str) -> ldm_core.LatentDiffusion:
    torch.manual_seed(0)
    return ldm_core.build(small_config(KINDS[kind]))
