"""Reads `open_clip_config.json`, which open_clip writes beside its weights.

    {"model_cfg": {"embed_dim", "quick_gelu", "vision_cfg": {…}, "text_cfg": {…}},
     "preprocess_cfg": {"mean", "std", "interpolation", "resize_mode"}}

open_clip has many settings, most of which change the network. This module lists the supported settings and
those that must have a fixed value. Any other setting raises an error with its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ldm_core.checkpoint.setting_values import reading
from ldm_core.clip.config import Activation, ImageEncoderConfig, TextEncoderConfig
from ldm_core.errors import CheckpointError, ConfigError
from ldm_core.support.printable import printable, shown

OPEN_CLIP_CONFIG = "open_clip_config.json"

_MODEL = {"embed_dim", "quick_gelu", "vision_cfg", "text_cfg"}
_IMAGE = {"image_size", "patch_size", "width", "layers", "head_width"}
_TEXT = {"vocab_size", "context_length", "width", "layers", "heads"}
_FIXED = {
    "mlp_ratio": 4.0,
    "pool_type": None,  # also the defaults "tok" for images and "argmax" for texts
    "ls_init_value": None,
    "patch_dropout": 0.0,
}
_POOLS = ("tok", "argmax")
_PREPROCESS_FIXED = {"interpolation": "bicubic", "resize_mode": "shortest", "mode": "RGB"}


def open_clip_parts(settings: Mapping[str, Any]) -> tuple[ImageEncoderConfig, TextEncoderConfig]:
    """The two encoders. Raises CheckpointError, naming the setting, if one is missing or not supported."""
    with reading(OPEN_CLIP_CONFIG):
        model, pixels = settings["model_cfg"], settings.get("preprocess_cfg", {})
        image, text = model["vision_cfg"], model["text_cfg"]
        for given, known in ((model, _MODEL), (image, _IMAGE), (text, _TEXT)):
            _refuse_unknown(given, known)
        for name, value in _PREPROCESS_FIXED.items():
            if pixels.get(name, value) != value:
                raise CheckpointError(
                    f"{OPEN_CLIP_CONFIG}: {name} is {shown(pixels[name])}; only {value!r} is supported"
                )
        quick = model.get("quick_gelu") or False
        if not isinstance(quick, bool):
            raise ConfigError(f"quick_gelu must be true or false, not {shown(quick)}")
        activation: Activation = "quick_gelu" if quick else "gelu"
        normalisation = {name: tuple(pixels[name]) for name in ("mean", "std") if name in pixels}
        return (
            ImageEncoderConfig(
                image_size=image.get("image_size", 224),
                patch_size=image.get("patch_size", 16),
                width=image.get("width", 768),
                layers=image.get("layers", 12),
                heads=image.get("width", 768) // image.get("head_width", 64),
                activation=activation,
                projection_dim=model["embed_dim"],
                **normalisation,
            ),
            TextEncoderConfig(
                vocab_size=text.get("vocab_size", 49408),
                context_length=text.get("context_length", 77),
                width=text.get("width", 512),
                layers=text.get("layers", 12),
                heads=text.get("heads", 8),
                activation=activation,
                pad_token_id=0,
                projection_dim=model["embed_dim"],
            ),
        )


def _refuse_unknown(settings: Mapping[str, Any], known: set[str]) -> None:
    for name, value in settings.items():
        fixed = name in _FIXED and (value == _FIXED[name] or (name == "pool_type" and value in _POOLS))
        if name not in known and not fixed:
            raise CheckpointError(
                f"{OPEN_CLIP_CONFIG}: {printable(name[:80])} is {shown(value)}, which is not supported"
            )
