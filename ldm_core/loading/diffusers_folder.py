"""A model as a diffusers folder: its key maps, and the JSON files that diffusers' pipelines read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ldm_core.checkpoint.folder import ADDED_TOKENS, ALONE, MODEL_INDEX, SCHEDULER
from ldm_core.checkpoint.key_map import KeyMap, prefixed
from ldm_core.checkpoint.setting_values import Settings
from ldm_core.config import LatentDiffusionConfig
from ldm_core.errors import CheckpointError, ConfigError
from ldm_core.loading import diffusers_config as names
from ldm_core.loading.parts import Folder, part_configs, part_of, parts
from ldm_core.support.printable import printable

_FROM_TEXT = "StableDiffusionPipeline"
# Pipelines for U-Nets with input channels besides the latents, by number of input channels.
_WITH_MORE = {
    5: "StableDiffusionDepth2ImgPipeline",
    7: "StableDiffusionUpscalePipeline",
    9: "StableDiffusionInpaintPipeline",
}
_WITH_SAFETY = (_FROM_TEXT, "StableDiffusionInpaintPipeline")


def part_maps(config: LatentDiffusionConfig) -> dict[str, KeyMap]:
    """The key map of each weights file, by its path in the folder; parameters are named as in `file_map`."""
    maps = {}
    for slot, own in part_configs(config).items():
        part = part_of(own)
        if part.folder is None:
            raise ConfigError(f"no diffusers class for {part.article}")
        key_map = part.layout(part.folder.layout).key_map(part.folder.stored(own))
        maps[part.folder.file] = prefixed(key_map, part.folder.prefix, f"{slot}.")
    return maps


def settings(config: LatentDiffusionConfig) -> dict[str, Any]:
    """The files of the folder besides the weights, by name: JSON values, or text."""
    folders = [part_of(own).folder for own in part_configs(config).values()]
    files = {name: value for one in folders if one for name, value in one.write(config).items()}
    return files | {MODEL_INDEX: _model_index(config, files), SCHEDULER: _scheduler(config)}


def as_text(value: Any) -> str:
    """The text of a file of `settings`."""
    return value if isinstance(value, str) else json.dumps(value, indent=2) + "\n"


def check_classes(settings: Mapping[str, Settings]) -> None:
    """Raise CheckpointError for a folder with parts of unsupported classes."""
    known: dict[str, list[str]] = {}
    for name, (_, *classes) in _classes(part.folder for part in parts()):
        known.setdefault(name, []).extend(classes)
    index = settings.get(MODEL_INDEX, {})
    for name, classes in known.items():
        entry = index.get(name)
        found = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        if found is not None and found not in classes:
            raise CheckpointError(
                f"{MODEL_INDEX}: its {name} is a {printable(str(found)[:80])}; only "
                f"{' and '.join(classes)} can be read"
            )


def _classes(folders: Iterable[Folder | None]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The entries of `model_index.json`: a name with its library and classes."""
    for one in folders:
        yield from one.classes.items() if one is not None else ()


def added_tokens(words: names.Words) -> dict[str, dict[str, int]]:
    """The file of the words added to CLIP's vocabulary, by path; empty without such words."""
    tokens = {
        word if place == 0 else f"{word}_{place}": number
        for word, numbers in words
        for place, number in enumerate(numbers)
    }
    return {ADDED_TOKENS: tokens} if tokens else {}


def _model_index(config: LatentDiffusionConfig, files: Mapping[str, Any]) -> dict[str, Any]:
    channels, latents = config.unet.in_channels, config.unet.out_channels
    pipeline = _FROM_TEXT if channels == latents else _WITH_MORE.get(channels)
    if pipeline is None:
        raise ConfigError(
            f"no pipeline takes a U-Net with {channels} input channels and {latents} latent channels"
        )
    if config.unet.adm_in_channels is not None:
        pipeline = "StableUnCLIPImg2ImgPipeline"
    index: dict[str, Any] = {
        "_class_name": pipeline,
        "scheduler": ["diffusers", "DDIMScheduler"],
    }
    folders = (part_of(own).folder for own in part_configs(config).values())
    for name, (library, usual, *_) in _classes(folders):
        written = files.get(f"{name}/{ALONE}", {})
        index[name] = [library, written.get("_class_name", usual)]
    if pipeline in _WITH_SAFETY:
        nothing = [None, None]
        index |= {"feature_extractor": nothing, "image_encoder": nothing, "safety_checker": nothing}
        index["requires_safety_checker"] = False
    return index


def _scheduler(config: LatentDiffusionConfig) -> dict[str, Any]:
    """DDIM with CompVis's settings, which are the defaults of this package."""
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
