"""The same networks in independent code: diffusers and transformers, filled by their own converters.

Weights go from a model of this package through its own key map to a file's tensors in CompVis's layout,
and from there through the reference libraries' single-file converters. So a comparison of outputs tests
the network and the key map at once.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from diffusers import AutoencoderKL as DiffusersAutoencoder
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import ResnetBlock2D
from support.random_models import random_model as random_model
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel
from transformers import CLIPTokenizer as TransformersTokenizer

import ldm_core
from ldm_core.clip.bpe import read_merges, vocabulary
from ldm_core.config import AutoencoderConfig, LatentDiffusionConfig, TextEncoderConfig, UNetConfig
from ldm_core.loading.diffusers_folder import as_text, settings
from ldm_core.loading.save import file_tensors
from ldm_core.model import LatentDiffusion

logging.getLogger("diffusers").setLevel(logging.ERROR)

# SD1's noise schedule as diffusers' schedulers are told of it.
SCHEDULE = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def unet_arguments(config: UNetConfig) -> dict[str, Any]:
    """Our configuration in diffusers' words. It calls the number of heads `attention_head_dim`."""
    widths = [config.model_channels * mult for mult in config.channel_mult]
    attends = [level in config.attention_levels for level in range(len(widths))]
    arguments: dict[str, Any] = {
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "block_out_channels": widths,
        "layers_per_block": config.num_res_blocks,
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
        "cross_attention_dim": config.context_dim,
        "transformer_layers_per_block": config.transformer_depth,
        "attention_head_dim": [config.heads(width) for width in widths],
        "use_linear_projection": config.use_linear_in_transformer,
    }
    if config.disable_self_attentions:
        arguments["only_cross_attention"] = list(config.disable_self_attentions)
    if config.num_classes is not None:
        arguments["num_class_embeds"] = config.num_classes
    if config.adm_in_channels is not None:
        arguments |= {
            "class_embed_type": "projection",
            "projection_class_embeddings_input_dim": config.adm_in_channels,
        }
    return arguments


@contextmanager
def computed_alike(model: LatentDiffusion | nn.Module) -> Iterator[None]:
    """With the references' convolutions and memory layout, so that sums are in the same order."""
    ldm_core.set_convolution(model, "direct")
    with (
        mock.patch("ldm_core.autoencoder.layers.fastest_layout", lambda x: x),
        mock.patch("ldm_core.unet.encoder.fastest_layout", lambda x: x),
    ):
        yield
    ldm_core.set_convolution(model, "auto")


def reference_unet(model: LatentDiffusion) -> UNet2DConditionModel:
    arguments = unet_arguments(model.config.unet)
    narrow = model.config.unet.channel_mult[0] != 1
    if narrow:
        arguments["time_embedding_dim"] = 4 * model.config.unet.model_channels
    reference = UNet2DConditionModel(**arguments).eval()
    if narrow:
        _begin_narrow(reference, model.config.unet)
    settings = {**dict(reference.config)}
    converted = convert_ldm_unet_checkpoint(file_tensors(model), settings)
    return _filled(reference, converted)


def _begin_narrow(reference: UNet2DConditionModel, config: UNetConfig) -> None:
    """Fewer channels before the first level than in it, which diffusers' settings cannot say."""
    narrow, wide = config.model_channels, config.model_channels * config.channel_mult[0]
    last = reference.up_blocks[-1].resnets
    block = {"out_channels": wide, "temb_channels": 4 * narrow, "eps": 1e-5}
    reference.conv_in = nn.Conv2d(config.in_channels, narrow, 3, padding=1)
    reference.time_proj = Timesteps(narrow, flip_sin_to_cos=True, downscale_freq_shift=0)
    reference.time_embedding = TimestepEmbedding(narrow, 4 * narrow)
    reference.down_blocks[0].resnets[0] = ResnetBlock2D(in_channels=narrow, **block)
    last[-1] = ResnetBlock2D(in_channels=wide + narrow, **block)
    reference.eval()


def reference_autoencoder(model: LatentDiffusion) -> DiffusersAutoencoder:
    config: AutoencoderConfig = model.config.autoencoder
    last = len(config.ch_mult) - 1
    attends = [config.has_attention(level) for level in range(last + 1)]
    reference = DiffusersAutoencoder(
        in_channels=config.in_channels,
        out_channels=config.out_ch,
        latent_channels=config.z_channels,
        block_out_channels=[config.ch * mult for mult in config.ch_mult],
        layers_per_block=config.num_res_blocks,
        down_block_types=["AttnDownEncoderBlock2D" if a else "DownEncoderBlock2D" for a in attends],
        up_block_types=["AttnUpDecoderBlock2D" if a else "UpDecoderBlock2D" for a in reversed(attends)],
    ).eval()
    tensors = file_tensors(model)
    converted = convert_ldm_vae_checkpoint(tensors, dict(reference.config))
    # The converter knows attention in the middle block only, as SD's autoencoder has it.
    names = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
    for key, value in tensors.items():
        found = re.fullmatch(r"first_stage_model\.(\w+)\.(down|up)\.(\d)\.attn\.(\d)\.(\w+)\.(\w+)", key)
        if found:
            side, way, level, block, leaf, kind = found.groups()
            place = int(level) if way == "down" else last - int(level)
            name = f"{side}.{way}_blocks.{place}.attentions.{block}.{names[leaf]}.{kind}"
            converted[name] = value.flatten(1) if value.ndim == 4 else value
            converted.pop(key.removeprefix("first_stage_model."), None)
    return _filled(reference, converted)


def reference_text_encoder(model: LatentDiffusion) -> CLIPTextModel:
    config: TextEncoderConfig = model.config.text_encoder
    reference = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.width,
            intermediate_size=4 * config.width,
            num_hidden_layers=config.layers - config.clip_skip,
            num_attention_heads=config.heads,
            max_position_embeddings=config.context_length,
            hidden_act=config.activation,
            projection_dim=config.projection_dim or config.width,
        )
    ).eval()
    tensors = file_tensors(model)
    if config.projection_dim is None:
        prefix = "cond_stage_model.transformer."
        converted = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    else:
        converted = convert_open_clip_checkpoint(reference, tensors, prefix="cond_stage_model.model.")
    wanted = reference.state_dict()
    bare = not any(key.startswith("text_model.") for key in wanted)  # transformers 5 dropped the prefix
    converted = {(k.removeprefix("text_model.") if bare else k): v for k, v in converted.items()}
    return _filled(reference, {k: v for k, v in converted.items() if k in wanted})


def reference_parts(model: LatentDiffusion) -> dict[str, Any]:
    """diffusers' parts with a model's weights; its autoencoder also holds the latent scale."""
    vae = reference_autoencoder(model)
    vae.register_to_config(scaling_factor=model.config.latent_scale)
    unet = reference_unet(model)
    unet.register_to_config(sample_size=16)
    return {
        "vae": vae,
        "unet": unet,
        "text_encoder": reference_text_encoder(model),
        "tokenizer": transformers_tokenizer(),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def transformers_tokenizer() -> TransformersTokenizer:
    """transformers' own tokenizer over the same merges, with the names that its files give the specials."""
    vocab = {token: i for i, token in enumerate(vocabulary()[:-2])}
    vocab |= {"<|startoftext|>": len(vocab), "<|endoftext|>": len(vocab) + 1}
    return TransformersTokenizer(vocab=vocab, merges=read_merges(), model_max_length=77)


def _filled(reference: nn.Module, tensors: dict[str, Tensor]) -> Any:
    """Strict, so that a key that one side does not know is an error."""
    dtype = next(t.dtype for t in tensors.values() if t.is_floating_point())
    reference.to(dtype)
    reference.load_state_dict(tensors, strict=True)
    return reference.requires_grad_(False)


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference over the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def settings_folder(config: LatentDiffusionConfig, folder: Path) -> Path:
    """The JSON files alone: from_single_file wants them, and would fetch them from the network."""
    for name, value in settings(config).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(as_text(value))
    return folder
