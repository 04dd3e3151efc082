"""Reads and writes transformers' settings files for CLIP: `config.json` and the tokenizer's files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from ldm_core.checkpoint.folder import ALONE, PREPROCESSOR, SPECIAL_TOKENS, TEXT_ENCODER, TOKENIZER
from ldm_core.checkpoint.setting_values import Settings, check_fixed, one_of, reading, whole
from ldm_core.clip.bpe import read_merges, vocabulary
from ldm_core.clip.config import ImageEncoderConfig, TextEncoderConfig
from ldm_core.errors import ConfigError

END_OF_TEXT, EXCLAMATION_MARK = 49407, 0
PAD_TOKENS = {"<|endoftext|>": END_OF_TEXT, "!": EXCLAMATION_MARK}


def text_encoder_config(
    settings: Settings, folder: Mapping[str, Settings], file: str = TEXT_ENCODER
) -> TextEncoderConfig:
    """The text encoder of transformers' `CLIPTextConfig`, with the padding of the folder's tokenizer.

    The setting `pad_token_id` is ignored, since it differs from the tokenizer's.
    """
    check_fixed(file, settings, {"layer_norm_eps": 1e-5})
    with reading(file):
        width = whole(settings, "hidden_size", 512)
        if (inner := whole(settings, "intermediate_size", 2048)) != 4 * width:
            raise ConfigError(f"expected intermediate_size {4 * width}, 4 × {width}, not {inner}")
        return TextEncoderConfig(
            vocab_size=whole(settings, "vocab_size", 49408),
            context_length=whole(settings, "max_position_embeddings", 77),
            width=width,
            layers=whole(settings, "num_hidden_layers", 12),
            heads=whole(settings, "num_attention_heads", 8),
            activation=settings.get("hidden_act", "quick_gelu"),
            pad_token_id=_pad_token_id(folder, settings.get("hidden_act")),
        )


def text_encoder_in(settings: Settings, folder: Mapping[str, Settings]) -> TextEncoderConfig:
    """The same of a part's `config.json`, which may be that of a folder of a whole CLIP."""
    inner = settings.get("text_config")
    if isinstance(inner, dict):
        return text_encoder_config(inner, folder, f"{ALONE}, text_config")
    return text_encoder_config(settings, folder)


def clip_parts(folder: Mapping[str, Settings]) -> tuple[ImageEncoderConfig, TextEncoderConfig]:
    """The image encoder and text encoder of transformers' `CLIPConfig` in a folder of a whole CLIP."""
    settings = folder[ALONE]
    one_of(ALONE, "model_type", settings.get("model_type"), {"clip": None})
    with reading(ALONE):
        image, text = settings["vision_config"], settings["text_config"]
        joint = whole(settings, "projection_dim", 512)
        return (
            image_encoder_in(image, joint, folder.get(PREPROCESSOR, {}), f"{ALONE}, vision_config"),
            replace(text_encoder_config(text, folder, f"{ALONE}, text_config"), projection_dim=joint),
        )


def image_encoder_in(image: Settings, joint: int, pixels: Settings, file: str) -> ImageEncoderConfig:
    """The image encoder of transformers' `CLIPVisionConfig`.

    joint: the projection_dim. pixels: the settings of the preprocessing. file: of `image`, for errors.
    """
    check_fixed(file, image, {"layer_norm_eps": 1e-5, "num_channels": 3})
    with reading(file):
        width = whole(image, "hidden_size", 768)
        if (inner := whole(image, "intermediate_size", 3072)) != 4 * width:
            raise ConfigError(f"expected intermediate_size {4 * width}, 4 × {width}, not {inner}")
        return ImageEncoderConfig(
            image_size=whole(image, "image_size", 224),
            patch_size=whole(image, "patch_size", 32),
            width=width,
            layers=whole(image, "num_hidden_layers", 12),
            heads=whole(image, "num_attention_heads", 12),
            activation=image.get("hidden_act", "quick_gelu"),
            projection_dim=joint,
            **_pixels(pixels),
        )


def image_encoder_settings(image: ImageEncoderConfig) -> dict[str, Any]:
    """The `config.json` of transformers' `CLIPVisionModelWithProjection`."""
    return {
        "architectures": ["CLIPVisionModelWithProjection"],
        "attention_dropout": 0.0,
        "hidden_act": image.activation,
        "hidden_size": image.width,
        "image_size": image.image_size,
        "intermediate_size": 4 * image.width,
        "layer_norm_eps": 1e-5,
        "model_type": "clip_vision_model",
        "num_attention_heads": image.heads,
        "num_channels": 3,
        "num_hidden_layers": image.layers,
        "patch_size": image.patch_size,
        "projection_dim": image.projection_dim,
    }


def preprocessor_settings(image: ImageEncoderConfig) -> dict[str, Any]:
    """The `preprocessor_config.json` of transformers' `CLIPImageProcessor`, with CLIP's own preprocessing."""
    return {
        "crop_size": {"height": image.image_size, "width": image.image_size},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(image.mean),
        "image_processor_type": "CLIPImageProcessor",
        "image_std": list(image.std),
        "resample": 3,
        "size": {"shortest_edge": image.image_size},
    }


def _pixels(settings: Settings) -> dict[str, Any]:
    """The mean and standard deviation of pixels in a folder's `preprocessor_config.json`."""
    check_fixed(PREPROCESSOR, settings, {"resample": 3, "do_center_crop": True, "do_normalize": True})
    with reading(PREPROCESSOR):
        names = {"mean": "image_mean", "std": "image_std"}
        return {ours: tuple(settings[theirs]) for ours, theirs in names.items() if theirs in settings}


def _pad_token_id(folder: Mapping[str, Settings], activation: Any) -> int:
    """The padding id of the folder's tokenizer: the end of text for SD1, and "!", which is 0, for SD2.

    Without a tokenizer, the activation determines it: open_clip's models use the exact gelu.
    """
    for file in (SPECIAL_TOKENS, TOKENIZER):
        token = folder.get(file, {}).get("pad_token")
        text = token.get("content") if isinstance(token, dict) else token
        if text is not None:
            return int(one_of(file, "pad_token", text, PAD_TOKENS))
    return EXCLAMATION_MARK if activation == "gelu" else END_OF_TEXT


def stored_text_encoder(text: TextEncoderConfig) -> TextEncoderConfig:
    """The text encoder as a diffusers folder holds it: only the blocks that are used, and no projection.

    diffusers' pipelines take the last block's output, so those of SD2 have 23 blocks of OpenCLIP's 24.
    """
    return replace(text, layers=text.layers - text.clip_skip, clip_skip=0, projection_dim=None)


def text_encoder_settings(text: TextEncoderConfig) -> dict[str, Any]:
    """A text encoder's `config.json`, as diffusers' folders have it."""
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


@cache
def _vocabulary_files() -> tuple[Mapping[str, int], str]:
    """The contents of vocab.json and merges.txt, which are the same for every CLIP."""
    words = [*vocabulary()[:-2], "<|startoftext|>", "<|endoftext|>"]
    merges = "\n".join(["#version: 0.2", *map(" ".join, read_merges())]) + "\n"
    return {token: number for number, token in enumerate(words)}, merges


def tokenizer_settings(text: TextEncoderConfig) -> dict[str, Any]:
    """The files of its tokenizer: JSON values, or text."""
    spelled = {number: token for token, number in PAD_TOKENS.items()}
    tokens = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": spelled[text.pad_token_id],
        "unk_token": "<|endoftext|>",
    }
    numbers, merges = _vocabulary_files()
    return {
        "tokenizer/vocab.json": dict(numbers),
        "tokenizer/merges.txt": merges,
        SPECIAL_TOKENS: tokens,
        TOKENIZER: {
            **tokens,
            "add_prefix_space": False,
            "do_lower_case": True,
            "model_max_length": text.context_length,
            "tokenizer_class": "CLIPTokenizer",
        },
    }
