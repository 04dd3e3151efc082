"""Small priors with random weights, and diffusers' and transformers' networks with the same."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from diffusers import PriorTransformer as DiffusersPrior
from torch import Tensor

from ldm_core.checkpoint.key_map import to_file
from ldm_core.clip import CLIP, CLIPConfig
from ldm_core.config import ImageEncoderConfig, TextEncoderConfig
from ldm_core.prior import Prior, PriorConfig, PriorTransformer
from ldm_core.prior.names import diffusers_map

WIDTH, TOKENS = 16, 12
SMALL = PriorConfig(width=32, layers=2, heads=4, embedding_dim=WIDTH, text_width=WIDTH, context_length=TOKENS)


def random_prior(config: PriorConfig = SMALL) -> PriorTransformer:
    """With weights of which none is zero or one, so that no term can hide."""
    torch.manual_seed(0)
    network = PriorTransformer(config).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    return network


def small_clip(width: int = WIDTH, tokens: int = TOKENS) -> CLIP:
    image = ImageEncoderConfig(image_size=16, patch_size=8, width=16, layers=1, heads=2, projection_dim=width)
    text = TextEncoderConfig(context_length=tokens, width=width, layers=2, heads=2, projection_dim=width)
    clip = CLIP(CLIPConfig(image, text), torch.Generator().manual_seed(1)).eval()
    return clip.requires_grad_(False)


def small_prior(**settings: Any) -> Prior:
    clip = small_clip()
    return Prior(random_prior(), clip.text_encoder, clip.tokenizer, **settings)


def diffusers_arguments(config: PriorConfig) -> dict[str, int]:
    return {
        "num_attention_heads": config.heads,
        "attention_head_dim": config.width // config.heads,
        "num_layers": config.layers,
        "embedding_dim": config.embedding_dim,
        "num_embeddings": config.context_length,
    }


def diffusers_prior(network: PriorTransformer) -> Any:
    theirs = DiffusersPrior(**diffusers_arguments(network.config)).eval().requires_grad_(False)
    theirs.load_state_dict(to_file(diffusers_map(network.config), network.state_dict()), strict=True)
    return theirs


def text_tensors(clip: CLIP) -> dict[str, Tensor]:
    """The text encoder and its projection in transformers' names."""
    from support.clip_reference import transformers_tensors

    names = ("text_model.", "text_projection.")
    return {k: v.contiguous() for k, v in transformers_tensors(clip).items() if k.startswith(names)}


def text_settings(clip: CLIP) -> dict[str, Any]:
    from support.clip_reference import transformers_configs

    return {**transformers_configs(clip.config)[1], "model_type": "clip_text_model"}


def transformers_text(clip: CLIP) -> Any:
    config = transformers.CLIPTextConfig(**text_settings(clip))
    network = transformers.CLIPTextModelWithProjection(config).eval().requires_grad_(False)
    network.load_state_dict(text_tensors(clip), strict=True)
    return network
