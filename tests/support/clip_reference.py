"""CLIP in independent code: transformers' and open_clip's models with the weights of one of ours.

Weights go through our key maps and are loaded strictly, so a comparison of outputs tests both.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import os
import sys
from dataclasses import replace
from types import ModuleType
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
import transformers
from torch import Tensor, nn

from ldm_core.checkpoint.key_map import to_file
from ldm_core.clip import CLIP, CLIPConfig
from ldm_core.clip.names import openai_map, transformers_clip_map
from ldm_core.config import ImageEncoderConfig, TextEncoderConfig

SMALL_B32 = CLIPConfig(
    ImageEncoderConfig(width=64, layers=3, heads=4, projection_dim=40),
    TextEncoderConfig(width=48, layers=2, heads=3, projection_dim=40),
)
# The published patches and positions, with few and narrow blocks.
SMALL = {
    "ViT-B/32": SMALL_B32,
    "ViT-B/16": replace(SMALL_B32, image_encoder=replace(SMALL_B32.image_encoder, patch_size=16)),
    "ViT-L/14": replace(SMALL_B32, image_encoder=replace(SMALL_B32.image_encoder, patch_size=14)),
    "open_clip/ViT-H-14": CLIPConfig(
        replace(SMALL_B32.image_encoder, patch_size=14, activation="gelu"),
        replace(SMALL_B32.text_encoder, activation="gelu", pad_token_id=0),
    ),
}
PROMPTS = ["a cat", "a photo of a dog, on a red sofa!", ""]


def random_clip(config: CLIPConfig, seed: int = 0) -> CLIP:
    """A CLIP with random weights of which none is zero or one, so that no term can hide."""
    generator = torch.Generator().manual_seed(seed)
    model = CLIP(config, generator).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def transformers_tensors(model: CLIP) -> dict[str, Tensor]:
    config = model.config
    return to_file(transformers_clip_map(config.image_encoder, config.text_encoder), model.state_dict())


def openai_tensors(model: CLIP) -> dict[str, Tensor]:
    config = model.config
    return to_file(openai_map(config.image_encoder, config.text_encoder), model.state_dict())


def transformers_configs(config: CLIPConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """(vision_config, text_config)."""
    image, text = config.image_encoder, config.text_encoder

    def block(encoder: ImageEncoderConfig | TextEncoderConfig) -> dict[str, Any]:
        return {
            "hidden_size": encoder.width,
            "intermediate_size": 4 * encoder.width,
            "num_hidden_layers": encoder.layers,
            "num_attention_heads": encoder.heads,
            "hidden_act": encoder.activation,
            "projection_dim": encoder.projection_dim,
        }

    return (
        {**block(image), "image_size": image.image_size, "patch_size": image.patch_size},
        {
            **block(text),
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.context_length,
            "bos_token_id": 49406,
            "eos_token_id": 49407,
        },
    )


def filled(reference: nn.Module, tensors: dict[str, Tensor]) -> Any:
    reference.load_state_dict(tensors, strict=True)
    return reference.eval().requires_grad_(False)


def transformers_clip(model: CLIP) -> transformers.CLIPModel:
    vision, text = transformers_configs(model.config)
    joint = model.config.image_encoder.projection_dim
    config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=joint)
    return filled(transformers.CLIPModel(config), transformers_tensors(model))


def transformers_halves(model: CLIP) -> tuple[Any, Any]:
    """`CLIPVisionModelWithProjection` and `CLIPTextModelWithProjection`."""
    vision, text = transformers_configs(model.config)
    image_half = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**vision))
    text_half = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**text))
    tensors = transformers_tensors(model)
    return tuple(
        filled(half, {key: value for key, value in tensors.items() if key.startswith(prefixes)})
        for half, prefixes in (
            (image_half, ("vision_model.", "visual_projection.")),
            (text_half, ("text_model.", "text_projection.")),
        )
    )


def open_clip_module(name: str) -> ModuleType:
    """A module of open_clip without its `__init__`, which would need torchvision for much else."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        pytest.skip("the reference is missing: pip install --no-deps open_clip_torch==3.3.0")
    package = ModuleType("open_clip")
    package.__path__ = [os.path.dirname(spec.origin)]
    stand_ins = {"open_clip": package}
    if importlib.util.find_spec("torchvision") is None:
        for stand_in in ("torchvision", "torchvision.ops", "torchvision.ops.misc"):
            stand_ins[stand_in] = ModuleType(stand_in)
            stand_ins[stand_in].__spec__ = importlib.machinery.ModuleSpec(stand_in, None)
        stand_ins["torchvision.ops.misc"].FrozenBatchNorm2d = nn.BatchNorm2d  # of its ResNets, unused here
    sys.modules.update(stand_ins)
    try:
        return importlib.import_module(f"open_clip.{name}")
    finally:
        for module in [m for m in sys.modules if m.split(".")[0] == "open_clip" or m in stand_ins]:
            del sys.modules[module]


def open_clip_arguments(config: CLIPConfig) -> dict[str, Any]:
    """Our configuration in the words of open_clip's model files."""
    image, text = config.image_encoder, config.text_encoder
    return {
        "embed_dim": image.projection_dim,
        "quick_gelu": image.activation == "quick_gelu",
        "vision_cfg": {
            "image_size": image.image_size,
            "layers": image.layers,
            "width": image.width,
            "head_width": image.width // image.heads,
            "patch_size": image.patch_size,
        },
        "text_cfg": {
            "context_length": text.context_length,
            "vocab_size": text.vocab_size,
            "width": text.width,
            "heads": text.heads,
            "layers": text.layers,
        },
    }


def open_clip_model(config: CLIPConfig) -> Any:
    module = open_clip_module("model")
    arguments = open_clip_arguments(config)
    arguments["vision_cfg"] = module.CLIPVisionCfg(**arguments["vision_cfg"])
    arguments["text_cfg"] = module.CLIPTextCfg(**arguments["text_cfg"])
    return module.CLIP(**arguments).eval()
