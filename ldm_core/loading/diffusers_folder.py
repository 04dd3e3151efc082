"""A model as a diffusers folder: its key maps, and the JSON files that the real pipelines read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ldm_core.autoencoder.names import diffusers_map as autoencoder_map
from ldm_core.checkpoint import folder
from ldm_core.checkpoint.key_map import KeyMap, prefixed
from ldm_core.clip.bpe import read_merges, vocabulary
from ldm_core.clip.config import TextEncoderConfig
from ldm_core.clip.names import transformers_map
from ldm_core.clip.settings import PAD_TOKENS
from ldm_core.config import LatentDiffusionConfig
from ldm_core.errors import ConfigError
from ldm_core.loading import diffusers_config as names
from ldm_core.unet.names import diffusers_map as unet_map

_FROM_TEXT = "StableDiffusionPipeline"
# Of a U-Net that sees more than its latents, by how many channels it sees.
_WITH_MORE = {
    5: "StableDiffusionDepth2ImgPipeline",
    7: "StableDiffusionUpscalePipeline",
    9: "StableDiffusionInpaintPipeline",
}
_WITH_SAFETY = (_FROM_TEXT, "StableDiffusionInpaintPipeline")


def part_maps(config: LatentDiffusionConfig) -> dict[str, KeyMap]:
    """The key map of each file of weights, by its path in the folder; parameters as in `model_map`."""
    text = prefixed(transformers_map(stored_text_encoder(config)), "text_model.", "text_encoder.")
    return {
        "unet/diffusion_pytorch_model": prefixed(unet_map(config.unet), "", "unet."),
        "vae/diffusion_pytorch_model": prefixed(autoencoder_map(config.autoencoder), "", "autoencoder."),
        "text_encoder/model": text,
    }


def stored_text_encoder(config: LatentDiffusionConfig) -> TextEncoderConfig:
    """The text encoder as a folder holds it: only the blocks that are used, and no projection.

    diffusers' pipelines take the last block's output, so those of SD2 have 23 blocks of OpenCLIP's 24.
    """
    text = config.text_encoder
    return replace(text, layers=text.layers - text.clip_skip, clip_skip=0, projection_dim=None)


def settings(config: LatentDiffusionConfig) -> dict[str, dict[str, Any]]:
    """The folder's JSON files, by name; the inverse of `diffusers_config.from_settings`."""
    return {
        folder.MODEL_INDEX: _model_index(config),
        folder.UNET: _unet(config),
        folder.AUTOENCODER: _autoencoder(config),
        folder.TEXT_ENCODER: _text_encoder(stored_text_encoder(config)),
        folder.SCHEDULER: _scheduler(config),
        **_tokenizer(config.text_encoder),
        "tokenizer/vocab.json": {token: number for number, token in enumerate(_vocabulary())},
    }


def added_tokens(words: names.Words) -> dict[str, dict[str, int]]:
    """The file of the words beyond CLIP's vocabulary; several ids of one word as diffusers names them."""
    tokens = {
        word if place == 0 else f"{word}_{place}": number
        for word, numbers in words
        for place, number in enumerate(numbers)
    }
    return {folder.ADDED_TOKENS: tokens} if tokens else {}


def merges_text() -> str:
    """The tokenizer's merges.txt."""
    return "\n".join(["#version: 0.2", *(" ".join(pair) for pair in read_merges())]) + "\n"


def _vocabulary() -> list[str]:
    return [*vocabulary()[:-2], "<|startoftext|>", "<|endoftext|>"]


def _model_index(config: LatentDiffusionConfig) -> dict[str, Any]:
    channels, latents = config.unet.in_channels, config.unet.out_channels
    pipeline = _FROM_TEXT if channels == latents else _WITH_MORE.get(channels)
    if pipeline is None:
        raise ConfigError(
            f"a U-Net of {channels} input channels and latents of {latents} is of none of its pipelines"
        )
    if config.unet.adm_in_channels is not None:
        pipeline = "StableUnCLIPImg2ImgPipeline"
    index: dict[str, Any] = {
        "_class_name": pipeline,
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    if pipeline in _WITH_SAFETY:
        nothing = [None, None]
        index |= {"feature_extractor": nothing, "image_encoder": nothing, "safety_checker": nothing}
        index["requires_safety_checker"] = False
    return index


def _widths(part: str, channels: int, multiples: Sequence[int]) -> list[int]:
    """Each level's channels. diffusers has no other number for what comes before the first level."""
    if multiples[0] != 1:
        raise ConfigError(
            f"its {part}s are as wide before their first level as in it, "
            f"and this one has {channels} channels before, {channels * multiples[0]} in it"
        )
    return [channels * multiple for multiple in multiples]


def _unet(config: LatentDiffusionConfig) -> dict[str, Any]:
    unet = config.unet
    widths = _widths("U-Net", unet.model_channels, unet.channel_mult)
    attends = [level in unet.attention_levels for level in range(len(widths))]
    result: dict[str, Any] = {
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "attention_head_dim": unet.num_heads or [unet.heads(width) for width in widths],
        "block_out_channels": widths,
        "center_input_sample": False,
        "cross_attention_dim": unet.context_dim,
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": unet.in_channels,
        "layers_per_block": unet.num_res_blocks,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-5,
        "norm_num_groups": 32,
        "out_channels": unet.out_channels,
        "sample_size": config.image_size // config.autoencoder.downsampling,
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
        "use_linear_projection": unet.use_linear_in_transformer,
    }
    if unet.transformer_depth != 1:
        result["transformer_layers_per_block"] = unet.transformer_depth
    if unet.disable_self_attentions:
        result["only_cross_attention"] = list(unet.disable_self_attentions)
    if unet.num_classes is not None:
        result["num_class_embeds"] = unet.num_classes
    if unet.adm_in_channels is not None:
        result["class_embed_type"] = "projection"
        result["projection_class_embeddings_input_dim"] = unet.adm_in_channels
    return result


def _autoencoder(config: LatentDiffusionConfig) -> dict[str, Any]:
    vae = config.autoencoder
    attends = [vae.has_attention(level) for level in range(len(vae.ch_mult))]
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": _widths("autoencoder", vae.ch, vae.ch_mult),
        "down_block_types": ["AttnDownEncoderBlock2D" if a else "DownEncoderBlock2D" for a in attends],
        "in_channels": vae.in_channels,
        "latent_channels": vae.embed_dim,
        "layers_per_block": vae.num_res_blocks,
        "norm_num_groups": 32,
        "out_channels": vae.out_ch,
        "sample_size": config.image_size,
        "scaling_factor": config.latent_scale,
        "up_block_types": ["AttnUpDecoderBlock2D" if a else "UpDecoderBlock2D" for a in reversed(attends)],
    }


def _text_encoder(text: TextEncoderConfig) -> dict[str, Any]:
    return {
        "architectures": ["CLIPTextModel"],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "dropout": 0.0,
        "eos_token_id": 2,
        "hidden_act": text.activation,
        "hidden_size": text.width,
        "intermediate_size": 4 * text.width,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": text.context_length,
        "model_type": "clip_text_model",
        "num_attention_heads": text.heads,
        "num_hidden_layers": text.layers,
        "pad_token_id": 1,
        "projection_dim": text.width,
        "vocab_size": text.vocab_size,
    }


def _scheduler(config: LatentDiffusionConfig) -> dict[str, Any]:
    """DDIM with CompVis's own settings, which are this package's defaults."""
    schedule = config.noise_schedule
    betas = {ours: theirs for theirs, ours in names.BETA_SCHEDULES.items()}
    predictions = {ours: theirs for theirs, ours in names.PREDICTIONS.items()}
    return {
        "_class_name": "DDIMScheduler",
        "beta_end": schedule.linear_end,
        "beta_schedule": betas[schedule.beta_schedule],
        "beta_start": schedule.linear_start,
        "clip_sample": False,
        "num_train_timesteps": schedule.timesteps,
        "prediction_type": predictions[config.prediction],
        "rescale_betas_zero_snr": schedule.zero_terminal_snr,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "timestep_spacing": "leading",
    }


def _tokenizer(text: TextEncoderConfig) -> dict[str, dict[str, Any]]:
    spelled = {number: token for token, number in PAD_TOKENS.items()}
    tokens = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": spelled[text.pad_token_id],
        "unk_token": "<|endoftext|>",
    }
    return {
        folder.SPECIAL_TOKENS: tokens,
        folder.TOKENIZER: {
            **tokens,
            "add_prefix_space": False,
            "do_lower_case": True,
            "model_max_length": text.context_length,
            "tokenizer_class": "CLIPTokenizer",
        },
    }
