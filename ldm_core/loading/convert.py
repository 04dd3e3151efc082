"""Convert a checkpoint to another format, or merge several of one architecture, tensor by tensor.

Tensors are read from memory-mapped files and computed when they are written, so about one tensor at a time
is in memory.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm_core.checkpoint.writer import WRITERS, Pending
from ldm_core.config import LatentDiffusionConfig
from ldm_core.errors import CheckpointError
from ldm_core.loading.decide import Decision
from ldm_core.loading.parts import part_of
from ldm_core.loading.save import LayoutName, write_model
from ldm_core.loading.weights import PARTS, Weights, open_weights
from ldm_core.noise_schedule import PredictionType
from ldm_core.support.printable import shown


def convert(
    source: str | Path,
    target: str | Path,
    *,
    layout: LayoutName | None = None,
    dtype: torch.dtype | None = None,
    config: str | Path | LatentDiffusionConfig | None = None,
    prediction: PredictionType | None = None,
    ema: bool | None = None,
    variant: str | None = None,
    text_encoder: str | Path | None = None,
    unet: str | Path | None = None,
    autoencoder: str | Path | None = None,
    conditioner: str | Path | None = None,
    overwrite: bool = True,
) -> Any:
    """Write a checkpoint in another layout, file format or dtype. The options are those of `load` and `save`.

    layout: "compvis" for one file (`.safetensors`, `.ckpt`, `.pt`), "diffusers" for a folder; by default
        a target without such a suffix ("model", "v1.5") is a folder.
    dtype: None keeps the dtype of each tensor.
    overwrite: False raises FileExistsError if the target exists, even if it was created during the
        conversion. A folder that is not empty is never overwritten.

    A file that contains a single part is written as that part. Returns the configuration of the model or the
    part. Raises CheckpointError as `load` and `save` do. The U-Net is not evaluated, so a model that may
    predict eps or v requires `prediction` or `config`.
    """
    parts = dict(zip(PARTS, (text_encoder, unet, autoencoder, conditioner), strict=True))
    weights = open_weights(
        source, config=config, prediction=prediction, ema=ema, variant=variant, parts=parts, alone=True
    )
    written: dict[str, Any] = {"dtype": dtype, "added_words": weights.added_words, "overwrite": overwrite}
    write_model(weights.config, weights.flat(), target, layout=layout or _layout(target), **written)
    return weights.config


def weighted_sum(
    a: str | Path, b: str | Path, target: str | Path, alpha: float = 0.5, **options: Any
) -> LatentDiffusionConfig:
    """Write (1 - alpha) a + alpha b. The options are those of `merge_checkpoints`."""
    return merge_checkpoints([(a, 1 - alpha), (b, alpha)], target, **options)


def add_difference(
    a: str | Path, b: str | Path, c: str | Path, target: str | Path, alpha: float = 1.0, **options: Any
) -> LatentDiffusionConfig:
    """Write a + alpha (b - c): add to a what b learned over c. Options as in `merge_checkpoints`."""
    return merge_checkpoints([(a, 1.0), (b, alpha), (c, -alpha)], target, **options)


def merge_checkpoints(
    models: Iterable[tuple[str | Path, float]],
    target: str | Path,
    *,
    layout: LayoutName | None = None,
    dtype: torch.dtype | None = None,
    config: str | Path | LatentDiffusionConfig | None = None,
    prediction: PredictionType | None = None,
    variant: str | None = None,
    overwrite: bool = True,
) -> LatentDiffusionConfig:
    """Write a weighted sum of models (for averages, see Wortsman et al. 2022, arXiv:2203.05482).

    models: pairs (path, factor). The files may have different layouts but must share one architecture: the
        same networks, schedule, latent scale and prediction.
    dtype: of the stored sums, which are computed in float32; None keeps the first model's dtypes.

    The other options are those of `convert` and apply to all models. Returns the configuration. Raises
    CheckpointError that names the differences, and ValueError for `models` that are not such pairs.
    """
    models = _pairs(models)
    opened = [open_weights(path, config=config, prediction=prediction, variant=variant) for path, _ in models]
    if len({tuple(weights.configs.values()) for weights in opened}) > 1:
        opened = [_as_in_folders(weights) for weights in opened]
    first, *others = opened
    for other in others:
        _require_same(first, other)
    factors = [factor for _, factor in models]
    tensors = [weights.flat() for weights in opened]
    sums: dict[str, Tensor | Pending] = {}
    for name, tensor in tensors[0].items():
        terms, stored = [each[name] for each in tensors], dtype or tensor.dtype
        sums[name] = Pending(stored, tuple(tensor.shape), partial(_sum, terms, factors, stored))
    write_model(
        first.config,
        sums,
        target,
        layout=layout or _layout(target),
        added_words=first.added_words,
        overwrite=overwrite,
    )
    return first.config


def _pairs(models: Any) -> list[tuple[str | Path, float]]:
    """The pairs (path, factor). Raises ValueError for anything else."""
    pairs = list(models) if isinstance(models, Iterable) and not isinstance(models, str | bytes) else []
    if not pairs:
        raise CheckpointError(
            f"merging needs pairs (path, factor) of at least one model, not {shown(models)}"
        )
    limit = torch.finfo(torch.float32).max  # sums are in float32
    for model in pairs:
        match model:
            case (str() | os.PathLike(), str() | bytes() | bool()):
                pass
            case (str() | os.PathLike(), factor) if abs(_number(factor)) <= limit:
                continue
        raise CheckpointError(
            f"merging needs pairs of a path and a factor that is a finite number, not {shown(model)}"
        )
    return [(path, float(factor)) for path, factor in pairs]


def _number(factor: Any) -> float:
    """A real number, or a tensor with one element, as a float; NaN for anything else."""
    try:
        return float(factor)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return math.nan


def _sum(terms: list[Tensor], factors: list[float], dtype: torch.dtype) -> Tensor:
    total = terms[0].float() * factors[0]
    for term, factor in zip(terms[1:], factors[1:], strict=True):
        total.add_(term.float(), alpha=factor)
    return total.to(dtype)


def _as_in_folders(weights: Weights) -> Weights:
    """The weights that a diffusers folder stores: without SD2's unused blocks, SD2 files compare equal."""
    config, parameters = weights.config, dict(weights.parameters)
    configs = dict(weights.configs)
    for slot, own in weights.configs.items():
        folder = part_of(own).folder
        if folder is None:
            continue
        configs[slot] = folder.stored(own)
        key_map = part_of(own).layout(folder.layout).key_map(configs[slot])
        kept = {name for entry in key_map.values() for name in entry.parameters}
        held = {**folder.filled(own), **parameters[slot]}
        parameters[slot] = {name: tensor for name, tensor in held.items() if name in kept}
    decision = Decision(replace(config, **configs), (config.prediction,))
    return replace(weights, configs=configs, parameters=parameters, decision=decision)


def _require_same(first: Weights, other: Weights) -> None:
    ours, theirs = (_comparable(weights) for weights in (first, other))
    differ = [name for name in ours if ours[name] != theirs.get(name)]
    if differ:
        raise CheckpointError(
            f"{first.checkpoint.path.name} and {other.checkpoint.path.name} have different architectures: "
            f"they differ in {', '.join(differ)}"
        )


def _comparable(weights: Weights) -> dict[str, Any]:
    """The configuration without fields that have no effect on the result."""
    parts = ((slot, own, part_of(own)) for slot, own in weights.configs.items())
    same = {slot: part.blank(own) for slot, own, part in parts if part.proves_all}
    return replace(weights.config, image_size=1, **same).to_dict()


def _layout(target: str | Path) -> LayoutName:
    # "v1.5" names a folder; "model.gguf" is an unsupported file format, for which `save` raises.
    return "compvis" if Path(target).suffix[1:].isalpha() or Path(target).suffix in WRITERS else "diffusers"
