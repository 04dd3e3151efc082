"""Where a checkpoint's configuration comes from, and whether it agrees with the tensors.

In this order: what the caller gives; a YAML file of the same name beside the checkpoint; metadata in the
file; the one known model that has exactly these tensors. Whatever is used is held against the shapes.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from ldm_core.checkpoint.compvis_yaml import read_yaml
from ldm_core.checkpoint.detect import differences, matching_presets, proven_config, with_proven_text_encoder
from ldm_core.checkpoint.errors import CheckpointError
from ldm_core.checkpoint.key_map import NAMES_SHOWN
from ldm_core.checkpoint.reader import Checkpoint
from ldm_core.checkpoint.save import CONFIG_KEY
from ldm_core.config import ConfigError, LatentDiffusionConfig, preset

YAML = (".yaml", ".yml")
SCALE_RTOL = 1e-2  # a scale stored in 16 bits is off by up to 2**-9


def resolve_config(
    checkpoint: Checkpoint, config: str | Path | LatentDiffusionConfig | None
) -> LatentDiffusionConfig:
    """The configuration of a checkpoint, checked against its tensors.

    Raises CheckpointError if there is none, or if it contradicts the file, naming each contradiction.
    """
    source = checkpoint.path.name
    try:
        proven = proven_config({key: tuple(value.shape) for key, value in checkpoint.tensors.items()})
    except (CheckpointError, ConfigError) as error:
        raise CheckpointError(f"{source}: {error}") from error
    yaml = _yaml(checkpoint, config)
    if yaml is not None:
        resolved = with_proven_text_encoder(read_yaml(yaml, stored_scale=_stored_scale(checkpoint)), proven)
        origin = str(yaml)
    elif isinstance(config, LatentDiffusionConfig):
        resolved, origin = config, "the given configuration"
    elif config is not None:
        resolved, origin = preset(str(config)), f"preset {config}"
    elif CONFIG_KEY in checkpoint.metadata:
        resolved, origin = _from_metadata(checkpoint), "the file's own metadata"
    else:
        resolved, origin = _only_match(source, proven), "the tensors"
    wrong = differences(resolved, proven)
    scale = _stored_scale(checkpoint)
    if scale is not None and not math.isclose(scale, resolved.latent_scale, rel_tol=SCALE_RTOL):
        wrong.append(f"latent_scale: the configuration says {resolved.latent_scale}, the file {scale:.6g}")
    if wrong:
        lines = "\n    ".join(wrong[:NAMES_SHOWN])
        raise CheckpointError(f"{source} contradicts {origin}:\n    {lines}")
    return resolved


def _stored_scale(checkpoint: Checkpoint) -> float | None:
    """The latent scale that CompVis's trainer leaves in a checkpoint if it measured one (`scale_by_std`)."""
    stored = checkpoint.tensors.get("scale_factor")
    return float(stored) if stored is not None and stored.numel() == 1 else None


def _yaml(checkpoint: Checkpoint, config: str | Path | LatentDiffusionConfig | None) -> Path | None:
    """The YAML file to read, if the configuration is to come from one."""
    if isinstance(config, (str, Path)):
        return Path(config) if Path(config).suffix in YAML else None
    if config is None:
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


def _only_match(source: str, proven: LatentDiffusionConfig) -> LatentDiffusionConfig:
    names = matching_presets(proven)
    if len(names) == 1:
        return preset(names[0])
    if names:
        raise CheckpointError(
            f"{source} has the tensors of {' and of '.join(names)}, which differ in what they predict: "
            f"say which with config={names[0]!r} (or another of these)"
        )
    raise CheckpointError(
        f"{source} is of no model known here: its tensors prove neither the number of attention heads nor "
        "the latent scale nor what it predicts; give config= (a configuration or a CompVis YAML file)"
    )
