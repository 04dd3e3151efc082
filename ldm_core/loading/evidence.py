"""What files say of themselves beyond their tensors: metadata, settings files, and what trainers left."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ldm_core.checkpoint import folder
from ldm_core.checkpoint.reader import Checkpoint
from ldm_core.clip.tokenizer import MAX_WORD_IDS, MAX_WORD_LETTERS, MAX_WORDS, CLIPTokenizer
from ldm_core.config import LatentDiffusionConfig
from ldm_core.errors import CheckpointError, ConfigError
from ldm_core.loading import diffusers_config
from ldm_core.loading.parts import PartSource
from ldm_core.loading.shapes import PartConfig
from ldm_core.support.json_text import parse_json
from ldm_core.support.limits import MAX_SCALE, is_number, is_whole
from ldm_core.support.printable import shown

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
    source = f"{checkpoint.path.name}: the configuration in its metadata is damaged"
    try:
        stated = parse_json(checkpoint.metadata[CONFIG_KEY], source, CheckpointError)
        return LatentDiffusionConfig.from_dict(stated)
    except ConfigError as error:
        raise CheckpointError(f"{source}: {error}") from error


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
    alone = checkpoint.metadata.get(folder.ALONE)
    settings = checkpoint.metadata.get(folder.AUTOENCODER, alone)
    if checkpoint.format != "diffusers" or settings is None or "scaling_factor" not in settings:
        return None
    scale = settings["scaling_factor"]
    if not is_number(scale) or not 0 < scale <= MAX_SCALE:
        raise CheckpointError(
            f"{folder.AUTOENCODER}: scaling_factor must be a positive number up to {MAX_SCALE:g}, "
            f"not {shown(scale)}"
        )
    return float(scale)


def added_words_of(checkpoint: Checkpoint, vocab_size: int) -> diffusers_config.Words:
    """The words that a file's or folder's text encoder knows beyond CLIP's vocabulary, each with its ids.

    vocab_size: of the text encoder's table. Raises CheckpointError for words, or numbers of them, that no
    tokenizer takes, and for ids that are not in the table.
    """
    name = checkpoint.path.name
    if checkpoint.format == "diffusers":
        words = diffusers_config.added_words(checkpoint.metadata, name)
    elif WORDS_KEY in checkpoint.metadata:
        words = _stored_words(
            checkpoint.metadata[WORDS_KEY], f"{name}: the words in its metadata are damaged"
        )
    else:
        return ()
    if len(words) > MAX_WORDS:
        raise CheckpointError(f"{name}: its tokenizer adds {len(words):,} words, more than {MAX_WORDS}")
    first = CLIPTokenizer.vocab_size
    for word, numbers in words:
        if len(word) > MAX_WORD_LETTERS or len(numbers) > MAX_WORD_IDS:
            raise CheckpointError(
                f"{name}: its tokenizer adds a word of {len(word):,} letters and {len(numbers):,} ids, "
                f"more than {MAX_WORD_LETTERS} and {MAX_WORD_IDS}"
            )
        if not all(is_whole(number, first, vocab_size - 1) for number in numbers):
            rows = f"rows {first}..{vocab_size - 1}" if vocab_size > first else "no rows"
            raise CheckpointError(
                f"{name}: its tokenizer adds {shown(word)} as {shown(numbers)}; the text encoder's table has "
                f"{rows} for added words"
            )
    return words


def _stored_words(text: Any, source: str) -> diffusers_config.Words:
    """The words of the metadata, [[word, [id, …]], …]."""
    stored = parse_json(text, source, CheckpointError)
    pairs = stored if isinstance(stored, list) else [stored]
    for pair in pairs:
        match pair:
            case [str(), [*_]]:
                continue
            case _:
                raise CheckpointError(f"{source}: expected [word, [id, …]], not {shown(pair)}")
    return tuple((word, tuple(numbers)) for word, numbers in pairs)
