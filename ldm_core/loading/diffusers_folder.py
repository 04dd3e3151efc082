"""A model as a diffusers folder: its key maps, and the JSON files that diffusers' pipelines read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from ldm_core.checkpoint.folder import ADDED_TOKENS, CONFIG, MODEL_INDEX, SCHEDULER
from ldm_core.checkpoint.key_map import KeyMap, prefixed
from ldm_core.checkpoint.setting_values import Settings
from ldm_core.config import LatentDiffusionConfig
from ldm_core.errors import CheckpointError, ConfigError
from ldm_core.loading import diffusers_config as names
from ldm_core.loading.parts import Folder, model_slots, part_of, parts
from ldm_core.loading.pipelines import pipeline_of
from ldm_core.support.printable import printable

VERSION = "0.42.1"  # whose settings these files have; StableDiffusionInpaintPipeline requires the entry


def part_maps(config: LatentDiffusionConfig) -> dict[str, KeyMap]:
    """The key map of each weights file, by its path in the folder; parameters are named as in `file_map`."""
    maps: dict[str, KeyMap] = {}
    for slot, folder, places in _folders(config):
        own = getattr(config, slot)
        key_map = part_of(own).layout(folder.layout).key_map(folder.stored(own))
        prefix = folder.prefix if len(places) > 1 else f"{places[0]}.{folder.prefix}"
        for key, entry in prefixed(key_map, prefix, f"{slot}.").items():
            name, _, inner = key.partition(".")
            maps.setdefault(f"{name}/{folder.stems[name]}", {})[inner] = entry
    return maps


def filled(config: LatentDiffusionConfig) -> dict[str, Tensor]:
    """The parameters that the folder stores and the model lacks, named as in `part_maps`."""
    return {
        f"{slot}.{parameter}": value
        for slot, folder, _ in _folders(config)
        for parameter, value in folder.filled(getattr(config, slot)).items()
    }


def settings(config: LatentDiffusionConfig) -> dict[str, Any]:
    """The files of the folder besides the weights, by name: JSON values, or text."""
    pipeline = pipeline_of(config)
    index = {
        "_class_name": pipeline.name,
        "_diffusers_version": VERSION,
        "scheduler": ["diffusers", "DDIMScheduler"],
        **pipeline.entries,
    }
    files: dict[str, Any] = {MODEL_INDEX: index, SCHEDULER: _scheduler(config)}
    for _, folder, places in _folders(config):
        files |= folder.write(config, places[0])
        for entry, (library, *classes) in _classes([folder]):
            if entry in pipeline.networks:
                named = files.get(f"{entry}/{CONFIG}", {}).get("_class_name", classes[0])
                index[entry] = [library, named]
    if config.conditioner is not None:
        files |= pipeline.files(config.conditioner)
        index |= pipeline.own(config.conditioner)
    return files


def _folders(config: LatentDiffusionConfig) -> Iterator[tuple[str, Folder, list[str]]]:
    """The slot of each part with its entry in the registry and its subfolders. Raises ConfigError."""
    pipeline = pipeline_of(config)
    for slot in model_slots():
        own = getattr(config, slot)
        part = None if own is None else part_of(own)
        if part is None or not part.has_weights(own if part.folder is None else part.folder.stored(own)):
            continue
        places = [] if part.folder is None else pipeline.subfolders(part.folder.stems)
        if part.folder is None or not places:
            raise ConfigError(f"{pipeline.name} has no {part.words}")
        yield slot, part.folder, places


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


def _scheduler(config: LatentDiffusionConfig) -> dict[str, Any]:
    """DDIM with CompVis's settings, which are the defaults of this package."""
    predictions = {ours: theirs for theirs, ours in names.PREDICTIONS.items()}
    return {
        "_class_name": "DDIMScheduler",
        "clip_sample": False,
        "prediction_type": predictions[config.prediction],
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "timestep_spacing": "leading",
        **names.noise_schedule_settings(config.noise_schedule),
    }
