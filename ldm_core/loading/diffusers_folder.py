"""A model as a diffusers folder: its key maps, and the JSON files that the real pipelines read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ldm_core.autoencoder.names import diffusers_map as autoencoder_map
from ldm_core.autoencoder.settings import autoencoder_settings
from ldm_core.checkpoint import folder
from ldm_core.checkpoint.key_map import KeyMap, prefixed
from ldm_core.clip.bpe import read_merges, vocabulary
from ldm_core.clip.config import TextEncoderConfig
from ldm_core.clip.names import transformers_map
from ldm_core.clip.settings import text_encoder_settings, tokenizer_settings
from ldm_core.config import LatentDiffusionConfig
from ldm_core.errors import ConfigError
from ldm_core.loading import diffusers_config as names
from ldm_core.unet.names import diffusers_map as unet_map
from ldm_core.unet.settings import unet_settings

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
        folder.UNET: unet_settings(config.unet, config.image_size // config.autoencoder.downsampling),
        folder.AUTOENCODER: autoencoder_settings(config.autoencoder, config.image_size, config.latent_scale),
        folder.TEXT_ENCODER: text_encoder_settings(stored_text_encoder(config)),
        folder.SCHEDULER: _scheduler(config),
        **tokenizer_settings(config.text_encoder),
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
