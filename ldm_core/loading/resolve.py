"""Where a checkpoint's configuration comes from, and whether it agrees with the tensors.

In this order: what the caller gives; a YAML file of the same name beside the checkpoint; metadata in the
file; a diffusers folder's settings; the one known model that has exactly these tensors. Whatever is used is
held against the shapes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ldm_core.checkpoint import folder
from ldm_core.checkpoint.key_map import NAMES_SHOWN
from ldm_core.checkpoint.reader import Checkpoint
from ldm_core.config import PRESETS, LatentDiffusionConfig, preset
from ldm_core.errors import CheckpointError, ConfigError, UnknownModelError
from ldm_core.loading import diffusers_config
from ldm_core.loading.compvis_yaml import read_yaml
from ldm_core.loading.evidence import (
    CONFIG_KEY,
    config_in_metadata,
    described_part,
    folder_scale,
    stated_prediction,
    stored_scale,
    with_stated_schedule,
)
from ldm_core.loading.match import (
    Proven,
    blank,
    differences,
    fitted,
    fitted_part,
    matching_presets,
    part_differences,
    with_proven_text_encoder,
)
from ldm_core.loading.parts import Part, PartSource
from ldm_core.loading.shapes import PartConfig, prove, prove_all

YAML = (".yaml", ".yml")
SCALE_RTOL = 1e-2  # a scale stored in 16 bits is off by up to 2**-9

Sources = Mapping[Part, PartSource]


def resolve_config(
    checkpoint: Checkpoint,
    sources: Sources,
    config: str | Path | LatentDiffusionConfig | None = None,
    prediction: str | None = None,
) -> list[LatentDiffusionConfig]:
    """The configuration of a checkpoint, checked against its tensors.

    sources: where each part comes from. A part from another file brings with it what that file says of it:
    the U-Net also its schedule and what it predicts. prediction: what it predicts, whatever the files say.

    More than one configuration comes back where nothing says what the U-Net predicts: the tensors are those
    of several known models that differ in that. Raises CheckpointError if there is none, or if it
    contradicts a file, naming each contradiction.
    """
    proven = prove_all(sources)
    try:
        LatentDiffusionConfig(**proven)  # type: ignore[arg-type]
    except ConfigError as error:
        raise CheckpointError(f"{checkpoint.path.name}: {error}") from error
    resolved, origin = _origin(checkpoint, config, sources, proven)
    given = isinstance(config, LatentDiffusionConfig) or prediction is not None
    for i, one in enumerate(resolved):
        for part, source in sources.items():
            if source.checkpoint is not checkpoint:
                one = _with_foreign_part(one, part, source, proven)
        one = with_stated_schedule(fitted(one, proven), sources["unet"].checkpoint)
        problems = [*differences(one, proven), *_contradictions(one, sources, prediction_given=given)]
        if problems:
            lines = "\n    ".join(problems[:NAMES_SHOWN])
            raise CheckpointError(f"{checkpoint.path.name} contradicts {origin}:\n    {lines}")
        resolved[i] = one
    if config is None and prediction is None and _is_silent(checkpoint, sources["unet"]):
        # The main file speaks of its own U-Net; of this one, its tensors alone do.
        known = {PRESETS[name].prediction for name in matching_presets({"unet": proven["unet"]})}
        resolved = [
            one for stated in sorted(known or {"eps", "v"}) for one in _with_prediction([resolved[0]], stated)
        ]
    return _with_prediction(resolved, prediction)


def _is_silent(checkpoint: Checkpoint, unet: PartSource) -> bool:
    """Whether the U-Net comes from a file of its own that does not say what it predicts."""
    theirs = unet.checkpoint
    says = CONFIG_KEY in theirs.metadata or folder.SCHEDULER in theirs.metadata
    return theirs is not checkpoint and not says and stated_prediction(theirs) is None


def _contradictions(config: LatentDiffusionConfig, sources: Sources, *, prediction_given: bool) -> list[str]:
    """Where the files' own words contradict a configuration that fits their tensors."""
    wrong = []
    unet, autoencoder = sources["unet"].checkpoint, sources["autoencoder"].checkpoint
    for scale in (stored_scale(unet), folder_scale(autoencoder)):
        if scale is not None and not math.isclose(scale, config.latent_scale, rel_tol=SCALE_RTOL):
            wrong.append(f"latent_scale: the configuration says {config.latent_scale}, the file {scale:.6g}")
    stated = stated_prediction(unet)
    if stated is not None and stated[0] != config.prediction and not prediction_given:
        wrong.append(f"prediction: the configuration says {config.prediction}, {stated[1]} {stated[0]}")
    return wrong


def _with_foreign_part(
    config: LatentDiffusionConfig, part: Part, source: PartSource, proven: Proven
) -> LatentDiffusionConfig:
    """The configuration with a part from another file, as that file describes it."""
    checkpoint = source.checkpoint
    values: dict[str, Any] = {}
    described = described_part(source)
    if described is not None:
        values[part] = described
    elif blank(getattr(fitted(config, proven), part)) != proven[part]:
        with suppress(CheckpointError):  # the differences are told below
            values[part] = resolve_part(source)
    if part == "unet":
        if CONFIG_KEY in checkpoint.metadata:
            theirs = config_in_metadata(checkpoint)
            values |= {"noise_schedule": theirs.noise_schedule, "prediction": theirs.prediction}
        elif folder.SCHEDULER in checkpoint.metadata:
            settings = checkpoint.metadata[folder.SCHEDULER]
            values["noise_schedule"] = diffusers_config.noise_schedule_config(settings)
            values["prediction"] = diffusers_config.prediction(settings)
        elif (stated := stated_prediction(checkpoint)) is not None:
            values["prediction"] = stated[0]
    try:
        return replace(config, **values)
    except ConfigError as error:
        raise CheckpointError(f"{checkpoint.path.name} does not fit the rest: {error}") from error


Configs = list[LatentDiffusionConfig]


def _with_prediction(configs: Configs, prediction: str | None) -> Configs:
    if prediction is None:
        return configs
    fitting = [config for config in configs if config.prediction == prediction]
    try:
        return fitting or [replace(configs[0], prediction=prediction)]  # type: ignore[arg-type]
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def _origin(
    checkpoint: Checkpoint,
    config: str | Path | LatentDiffusionConfig | None,
    sources: Sources,
    proven: Proven,
) -> tuple[Configs, str]:
    """The configuration and where it is from, in words."""
    yaml = _yaml(checkpoint, config)
    if yaml is not None:
        resolved = read_yaml(yaml, stored_scale=stored_scale(checkpoint))
        return [with_proven_text_encoder(resolved, proven)], str(yaml)
    if isinstance(config, LatentDiffusionConfig):
        return [config], "the given configuration"
    if config is not None:
        return [preset(str(config))], f"preset {config}"
    if CONFIG_KEY in checkpoint.metadata:
        return [config_in_metadata(checkpoint)], "the file's own metadata"
    if checkpoint.format == "diffusers":
        return _from_folder(checkpoint, sources, proven), "the folder's settings"
    return _matches(checkpoint, proven), "the tensors"


def _from_folder(checkpoint: Checkpoint, sources: Sources, proven: Proven) -> Configs:
    """What a diffusers folder's settings say; of a part that it lacks, what the part's own file says.

    A folder without a scheduler must have a known model's tensors, whose schedule is then taken.
    """
    settings = checkpoint.metadata
    try:
        diffusers_config.check_classes(settings)
        parts: dict[str, Any] = {}
        for part, source in sources.items():
            parts[part] = resolve_part(source)
        scale = folder_scale(sources["autoencoder"].checkpoint) or diffusers_config.LATENT_SCALE
        if folder.SCHEDULER not in settings:
            return [replace(one, **parts, latent_scale=scale) for one in _matches(checkpoint, proven)]
        scheduler = settings[folder.SCHEDULER]
        return [
            LatentDiffusionConfig(
                **parts,
                noise_schedule=diffusers_config.noise_schedule_config(scheduler),
                prediction=diffusers_config.prediction(scheduler),
                latent_scale=scale,
                image_size=diffusers_config.sample_size(settings) * parts["autoencoder"].downsampling,
            )
        ]
    except ConfigError as error:
        raise CheckpointError(f"{checkpoint.path.name}: its parts do not fit each other: {error}") from error
    except CheckpointError as error:
        if str(error).startswith(checkpoint.path.name):
            raise
        raise CheckpointError(f"{checkpoint.path.name}: {error}") from error


def _yaml(checkpoint: Checkpoint, config: str | Path | LatentDiffusionConfig | None) -> Path | None:
    """The YAML file to read, if the configuration is to come from one."""
    if isinstance(config, (str, Path)):
        return Path(config) if Path(config).suffix in YAML else None
    if config is None and checkpoint.format != "diffusers":
        beside = (checkpoint.path.with_suffix(ending) for ending in YAML)
        return next((path for path in beside if path.is_file()), None)
    return None


def resolve_part(source: PartSource, config: str | Path | LatentDiffusionConfig | None = None) -> PartConfig:
    """The configuration of one part alone: the given one's, its own file's, or a known model's.

    Shapes prove all of an autoencoder. Raises CheckpointError for a part that fits none, or several.
    """
    part, name, proven = source.layout.part, source.checkpoint.path.name, prove(source)
    described = described_part(source) if config is None else None
    if described is None and config is None and part == "autoencoder":
        return proven
    candidates = [described] if described is not None else [getattr(c, part) for c in _candidates(config)]
    fitting = list(dict.fromkeys(fitted_part(candidate, proven) for candidate in candidates))
    fitting = [one for one in fitting if blank(one) == proven]
    if len(candidates) == 1 and not fitting:
        wrong = part_differences(part, fitted_part(candidates[0], proven), proven)
        raise CheckpointError(f"{name} contradicts its settings: {'; '.join(wrong)}")
    if len(fitting) != 1:
        what = "several known models" if fitting else "no known model"
        raise CheckpointError(
            f"{name}: its {part} fits {what}; give config= (a preset's name or a configuration)"
        )
    return fitting[0]


def _candidates(config: str | Path | LatentDiffusionConfig | None) -> Configs:
    if config is None:
        return list(PRESETS.values())
    if isinstance(config, LatentDiffusionConfig):
        return [config]
    return [read_yaml(config) if Path(config).suffix in YAML else preset(str(config))]


def _matches(checkpoint: Checkpoint, proven: Proven) -> list[LatentDiffusionConfig]:
    """The known models with exactly these tensors, less those that the file's own words exclude."""
    configs = [preset(name) for name in matching_presets(proven)]
    stated = stated_prediction(checkpoint)
    if configs and stated is not None:
        configs = _with_prediction(configs, stated[0])
    if not configs:
        raise UnknownModelError(
            f"{checkpoint.path.name} is of no model known here: its tensors prove neither the number of "
            "attention heads nor the latent scale nor what it predicts; give config= (a configuration or a "
            "CompVis YAML file)"
        )
    return configs


def undecided(source: str, configs: list[LatentDiffusionConfig], why: str = "") -> CheckpointError:
    """The error for a file that fits several configurations."""
    choices = " or ".join(f"prediction={config.prediction!r}" for config in configs)
    return CheckpointError(
        f"{source} has the tensors of models that differ in what they predict{why}: say which with {choices}"
    )
