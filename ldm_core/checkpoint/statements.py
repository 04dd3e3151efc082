"""What files say of themselves beyond their tensors: metadata, settings files, and what trainers left."""

from __future__ import annotations

import json
import math
from dataclasses import replace

from ldm_core.checkpoint import diffusers_config
from ldm_core.checkpoint.errors import CheckpointError
from ldm_core.checkpoint.parts import PartSource
from ldm_core.checkpoint.prove import PartConfig
from ldm_core.checkpoint.reader import Checkpoint
from ldm_core.config import ConfigError, LatentDiffusionConfig

# Where the configuration, and words beyond CLIP's vocabulary, lie in a file's metadata, as JSON.
CONFIG_KEY = "ldm_core.config"
WORDS_KEY = "ldm_core.added_words"

# Where the metadata of some programs say what a U-Net predicts: "modelspec" is Stability AI's and kohya's.
STATEMENT = "modelspec.prediction_type"
_STATED = {
    **dict.fromkeys(("v", "v_prediction", "v-prediction", "vpred"), "v"),
    **dict.fromkeys(("epsilon", "eps"), "eps"),
}


def config_in_metadata(checkpoint: Checkpoint) -> LatentDiffusionConfig:
    try:
        return LatentDiffusionConfig.from_dict(json.loads(checkpoint.metadata[CONFIG_KEY]))
    except (ConfigError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{checkpoint.path.name}: the configuration in its metadata is damaged: {error}"
        ) from error


def described_part(source: PartSource) -> PartConfig | None:
    """A part's configuration in the words of its own file or folder, if there are any."""
    metadata, part = source.checkpoint.metadata, source.layout.part
    if CONFIG_KEY in metadata:
        config: PartConfig = getattr(config_in_metadata(source.checkpoint), part)
        return config
    if source.checkpoint.format != "diffusers":
        return None
    return diffusers_config.part_config(part, metadata)


def stated_prediction(checkpoint: Checkpoint) -> tuple[str, str] | None:
    """What a file says that its U-Net predicts, and where it says so; None where it does not."""
    if "v_pred" in checkpoint.tensors:
        return "v", "its tensor v_pred"
    stated = checkpoint.metadata.get(STATEMENT)
    if isinstance(stated, str) and stated.lower() in _STATED:
        return _STATED[stated.lower()], f"its metadata {STATEMENT}"
    return None


def with_stated_schedule(config: LatentDiffusionConfig, unet: Checkpoint) -> LatentDiffusionConfig:
    """The configuration with a zero terminal SNR if the U-Net's file states one: CompVis's YAML has no name
    for it, so whatever the configuration was read from cannot deny it."""
    if "ztsnr" not in unet.tensors:
        return config
    return replace(config, noise_schedule=replace(config.noise_schedule, zero_terminal_snr=True))


def stored_scale(checkpoint: Checkpoint) -> float | None:
    """The latent scale that CompVis's trainer leaves in a checkpoint if it measured one (`scale_by_std`)."""
    stored = checkpoint.tensors.get("scale_factor")
    return float(stored) if stored is not None and stored.numel() == 1 and not stored.is_meta else None


def folder_scale(checkpoint: Checkpoint) -> float | None:
    """The latent scale that an autoencoder's own settings file states."""
    alone = checkpoint.metadata.get(diffusers_config.ALONE)
    settings = checkpoint.metadata.get(diffusers_config.AUTOENCODER, alone)
    if checkpoint.format != "diffusers" or settings is None or "scaling_factor" not in settings:
        return None
    scale = settings["scaling_factor"]
    if not isinstance(scale, (int, float)) or not scale > 0 or not math.isfinite(scale):
        raise CheckpointError(f"{diffusers_config.AUTOENCODER}: scaling_factor is {scale!r}, and no number")
    return float(scale)


def added_words_of(checkpoint: Checkpoint, vocab_size: int) -> diffusers_config.Words:
    """The words that a file's or folder's text encoder knows beyond CLIP's vocabulary, each with its ids."""
    if checkpoint.format == "diffusers":
        return diffusers_config.added_words(checkpoint.metadata, vocab_size)
    try:
        stored = json.loads(checkpoint.metadata.get(WORDS_KEY, "[]"))
        return tuple((str(word), tuple(int(number) for number in numbers)) for word, numbers in stored)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{checkpoint.path.name}: the words in its metadata are damaged") from error
