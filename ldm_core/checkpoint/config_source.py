"""Where a checkpoint's configuration comes from, and whether it agrees with the tensors.

In this order: what the caller gives; a YAML file of the same name beside the checkpoint; metadata in the
file; a diffusers folder's settings; the one known model that has exactly these tensors. Whatever is used is
held against the shapes.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

from ldm_core.checkpoint import diffusers_config
from ldm_core.checkpoint.compvis_yaml import read_yaml
from ldm_core.checkpoint.detect import (
    Proven,
    blank,
    differences,
    fitted,
    matching_presets,
    with_proven_text_encoder,
)
from ldm_core.checkpoint.errors import CheckpointError
from ldm_core.checkpoint.key_map import NAMES_SHOWN
from ldm_core.checkpoint.parts import PartSource
from ldm_core.checkpoint.prove import PartConfig
from ldm_core.checkpoint.reader import Checkpoint
from ldm_core.config import PRESETS, ConfigError, LatentDiffusionConfig, preset

CONFIG_KEY = "ldm_core.config"  # where the configuration lies in a file's metadata, as JSON
YAML = (".yaml", ".yml")
SCALE_RTOL = 1e-2  # a scale stored in 16 bits is off by up to 2**-9

# How the metadata of some programs says what a U-Net predicts: "modelspec" is Stability AI's and kohya's.
_STATED = {"modelspec.prediction_type": {"v": "v", "epsilon": "eps"}}


def resolve_config(
    checkpoint: Checkpoint,
    config: str | Path | LatentDiffusionConfig | None,
    proven: Proven,
    *,
    foreign_autoencoder: bool = False,
    prediction: str | None = None,
) -> list[LatentDiffusionConfig]:
    """The configuration of a checkpoint, checked against its tensors.

    proven: what the tensors prove of each part, wherever it comes from. foreign_autoencoder: it comes from
    another file than the rest, so it may differ from the configuration. prediction: "eps" or "v", whatever
    the configuration says.

    More than one configuration comes back where nothing says what the U-Net predicts: the tensors are those
    of several known models that differ in that. Raises CheckpointError if there is none, or if it
    contradicts the file, naming each contradiction.
    """
    source = checkpoint.path.name
    try:
        LatentDiffusionConfig(**proven)  # type: ignore[arg-type]
    except ConfigError as error:
        raise CheckpointError(f"{source}: {error}") from error
    resolved, origin = _origin(checkpoint, config, proven)
    scale = _stored_scale(checkpoint)
    for i, one in enumerate(resolved):
        if foreign_autoencoder and blank(one.autoencoder) != proven["autoencoder"]:
            one = replace(one, autoencoder=proven["autoencoder"])  # type: ignore[arg-type]
        one = fitted(one, proven)
        wrong = differences(one, proven)
        if scale is not None and not math.isclose(scale, one.latent_scale, rel_tol=SCALE_RTOL):
            wrong.append(f"latent_scale: the configuration says {one.latent_scale}, the file {scale:.6g}")
        if wrong:
            lines = "\n    ".join(wrong[:NAMES_SHOWN])
            raise CheckpointError(f"{source} contradicts {origin}:\n    {lines}")
        resolved[i] = one
    return _with_prediction(resolved, prediction)


def _with_prediction(
    configs: list[LatentDiffusionConfig], prediction: str | None
) -> list[LatentDiffusionConfig]:
    if prediction is None:
        return configs
    fitting = [config for config in configs if config.prediction == prediction]
    try:
        return fitting or [replace(configs[0], prediction=prediction)]  # type: ignore[arg-type]
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


def _origin(
    checkpoint: Checkpoint, config: str | Path | LatentDiffusionConfig | None, proven: Proven
) -> tuple[list[LatentDiffusionConfig], str]:
    """The configuration and where it is from, in words."""
    yaml = _yaml(checkpoint, config)
    if yaml is not None:
        resolved = read_yaml(yaml, stored_scale=_stored_scale(checkpoint))
        return [with_proven_text_encoder(resolved, proven)], str(yaml)
    if isinstance(config, LatentDiffusionConfig):
        return [config], "the given configuration"
    if config is not None:
        return [preset(str(config))], f"preset {config}"
    if CONFIG_KEY in checkpoint.metadata:
        return [_from_metadata(checkpoint)], "the file's own metadata"
    if checkpoint.format == "diffusers" and all(
        name in checkpoint.metadata for name in diffusers_config.NEEDED
    ):
        try:
            return [diffusers_config.from_settings(checkpoint.metadata)], "the folder's settings"
        except CheckpointError as error:
            raise CheckpointError(f"{checkpoint.path.name}: {error}") from error
    return _matches(checkpoint, proven), "the tensors"


def _stored_scale(checkpoint: Checkpoint) -> float | None:
    """The latent scale that CompVis's trainer leaves in a checkpoint if it measured one (`scale_by_std`)."""
    stored = checkpoint.tensors.get("scale_factor")
    return float(stored) if stored is not None and stored.numel() == 1 and not stored.is_meta else None


def _yaml(checkpoint: Checkpoint, config: str | Path | LatentDiffusionConfig | None) -> Path | None:
    """The YAML file to read, if the configuration is to come from one."""
    if isinstance(config, (str, Path)):
        return Path(config) if Path(config).suffix in YAML else None
    if config is None and checkpoint.format != "diffusers":
        beside = (checkpoint.path.with_suffix(ending) for ending in YAML)
        return next((path for path in beside if path.is_file()), None)
    return None


def _from_metadata(checkpoint: Checkpoint) -> LatentDiffusionConfig:
    try:
        return LatentDiffusionConfig.from_dict(json.loads(checkpoint.metadata[CONFIG_KEY]))
    except (ConfigError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{checkpoint.path.name}: the configuration in its metadata is damaged: {error}"
        ) from error


def stated_prediction(checkpoint: Checkpoint) -> tuple[str, str] | None:
    """What a file says that its U-Net predicts, and where it says so; None where it does not."""
    if "v_pred" in checkpoint.tensors:
        return "v", "its tensor v_pred"
    for name, values in _STATED.items():
        stated = checkpoint.metadata.get(name)
        if isinstance(stated, str) and stated in values:
            return values[stated], f"its metadata {name}"
    return None


def resolve_part(
    source: PartSource, proven: PartConfig, config: str | LatentDiffusionConfig | None
) -> PartConfig:
    """The configuration of one part alone: the given one's, its settings file's, or a known model's.

    Shapes prove all of an autoencoder. Raises CheckpointError for a part that fits none, or several.
    """
    part, name = source.layout.part, source.checkpoint.path.name
    metadata = source.checkpoint.metadata
    candidates: list[LatentDiffusionConfig] = list(PRESETS.values())
    if config is not None:
        candidates = [preset(config) if isinstance(config, str) else config]
    elif CONFIG_KEY in metadata:
        candidates = [_from_metadata(source.checkpoint)]
    elif part == "autoencoder":
        return proven
    elif part == "unet" and (settings := metadata.get("config.json", metadata.get(diffusers_config.UNET))):
        return diffusers_config.unet_config(settings)
    fitting = [getattr(fitted(one, {part: proven}), part) for one in candidates]
    fitting = list(dict.fromkeys(one for one in fitting if blank(one) == proven))
    if len(fitting) != 1:
        what = "several known models" if fitting else "no known model"
        raise CheckpointError(
            f"{name}: its {part} fits {what if config is None else 'the given configuration not'}; give "
            "config= (a preset's name or a configuration)"
        )
    return fitting[0]


def _matches(checkpoint: Checkpoint, proven: Proven) -> list[LatentDiffusionConfig]:
    """The known models with exactly these tensors, less those that the file's own words exclude."""
    configs = [preset(name) for name in matching_presets(proven)]
    stated = stated_prediction(checkpoint)
    if configs and stated is not None:
        configs = _with_prediction(configs, stated[0])
    if not configs:
        raise CheckpointError(
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
