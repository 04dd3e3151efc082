"""Load unCLIP's prior with the text encoder of its CLIP: `load_prior`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ldm_core.checkpoint.folder import MODEL_INDEX, read_json
from ldm_core.checkpoint.reader import read
from ldm_core.checkpoint.values import all_finite
from ldm_core.clip import CLIP, CLIPTextEncoder, CLIPTokenizer
from ldm_core.errors import CheckpointError
from ldm_core.loading.find import PartSource, find_parts
from ldm_core.loading.load import load_part
from ldm_core.loading.prior_part import PRIOR
from ldm_core.loading.weights import held
from ldm_core.nn.placement import blank, fill
from ldm_core.prior import KARLO, Prior, PriorConfig, PriorTransformer
from ldm_core.prior.settings import SCHEDULER, PriorSchedule, prior_schedule
from ldm_core.prior.shapes import blank as blank_config

FOLDER = "prior"
TEXT_FOLDERS = ("prior_text_encoder", "text_encoder")  # of stable unCLIP, and of Karlo
PROJECTION = "text_projection.weight"
BARE_KARLO = replace(KARLO, statistics=False)
KARLO_STATISTICS = "ViT-L-14_stats.th"


def load_prior(
    path: str | Path,
    *,
    clip: CLIP | str | Path | None = None,
    statistics: str | Path | Sequence[Tensor] | None = None,
    device: Any = "cpu",
    dtype: torch.dtype | Literal["auto"] | None = None,
    config: PriorConfig | None = None,
    variant: str | None = None,
    mmap: bool = True,
) -> Prior:
    """Load a prior: Karlo's file, a diffusers folder of a prior or of a whole pipeline, or a file of `save`.

    clip: the CLIP whose texts it reads, or its file. None: the text encoder in the folder of the pipeline.
    statistics: mean and std of the embeddings of pictures, two vectors (D,), or a file with both. Karlo
        publishes them as ViT-L-14_stats.th, and its prior's file lacks them.
    config: for a file other than Karlo's that states no number of heads.
    device, dtype, variant, mmap: as in `load`.

    Raises CheckpointError for a file that cannot be read, contains no prior, or does not fit its CLIP, and
    for missing statistics.
    """
    path = Path(path)
    options: dict[str, Any] = {"device": device, "dtype": dtype, "variant": variant, "mmap": mmap}
    pipeline = (path / FOLDER).is_dir()
    file = path / FOLDER if pipeline else path
    if config is None and _source(file, variant).prove() == blank_config(BARE_KARLO):
        config = BARE_KARLO  # whose file does not state the number of heads
    network = load_part(file, PRIOR.name, config=config, **options)
    assert isinstance(network, PriorTransformer)
    network = _with_statistics(network, statistics, file.name)
    text_encoder, tokenizer = _text_encoder(path if pipeline else None, clip, file.name, options)
    schedule = _schedule(path) if pipeline else None
    given = {} if schedule is None else schedule._asdict()
    try:
        return Prior(network, text_encoder, tokenizer, **given)
    except ValueError as error:
        raise CheckpointError(f"{file.name}: {error}") from error


def _source(file: Path, variant: str | None) -> PartSource:
    checkpoint = read(file, values=False, variant=variant)
    found = find_parts(checkpoint)
    if PRIOR.name not in found:
        raise CheckpointError(f"{file.name} contains no prior; {held(checkpoint, found)}")
    return found[PRIOR.name]


def _with_statistics(
    network: PriorTransformer, statistics: str | Path | Sequence[Tensor] | None, name: str
) -> PriorTransformer:
    """The network with the given mean and std, in place of those that it may have."""
    if statistics is None:
        if network.config.statistics:
            return network
        raise CheckpointError(
            f"{name} lacks mean and std of CLIP's embeddings, which Karlo publishes as {KARLO_STATISTICS}: "
            "pass statistics="
        )
    mean, std = _vectors(statistics, network.config.embedding_dim)
    weight = network.out.weight
    whole = blank(PriorTransformer, replace(network.config, statistics=True))
    fill(whole, {**network.state_dict(), "mean": mean[None], "std": std[None]}, weight.device, weight.dtype)
    return whole


def _vectors(statistics: str | Path | Sequence[Tensor], width: int) -> tuple[Tensor, Tensor]:
    values: list[Any]
    if isinstance(statistics, str | Path):
        name, values = Path(statistics).name, list(read(statistics).tensors.values())
    else:
        name, values = "statistics", list(statistics)
    vectors = [value.detach().flatten() for value in values if isinstance(value, Tensor)]
    fits = len(vectors) == len(values) == 2 and all(len(v) == width and all_finite(v) for v in vectors)
    if not fits or not bool(vectors[1].gt(0).all()):
        found = [
            tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__ for value in values
        ]
        raise CheckpointError(
            f"{name}: expected mean and std, finite vectors of {width} numbers with std above 0, got {found}"
        )
    return vectors[0], vectors[1]


def _text_encoder(
    pipeline: Path | None, clip: CLIP | str | Path | None, name: str, options: dict[str, Any]
) -> tuple[CLIPTextEncoder, CLIPTokenizer]:
    if isinstance(clip, str | Path):
        clip = CLIP.load(clip, **{k: v for k, v in options.items() if k != "variant"})
    if isinstance(clip, CLIP):
        return clip.text_encoder, clip.tokenizer
    if clip is not None:
        raise ValueError(f"clip must be a CLIP or its file, not {type(clip).__name__}")
    folder = None if pipeline is None else _text_folder(pipeline)
    if folder is None:
        raise CheckpointError(
            f"{name} contains no text encoder: pass clip=, the CLIP for which it was trained"
        )
    return _projected(folder, options)


def _text_folder(pipeline: Path) -> Path | None:
    """The folder of the text encoder that the prior reads, not of the one that conditions a decoder."""
    kind = (
        read_json(pipeline / MODEL_INDEX).get("_class_name") if (pipeline / MODEL_INDEX).is_file() else None
    )
    names = TEXT_FOLDERS[:1] if kind == "StableUnCLIPPipeline" else TEXT_FOLDERS
    return next((pipeline / name for name in names if (pipeline / name).is_dir()), None)


def _projected(folder: Path, options: dict[str, Any]) -> tuple[CLIPTextEncoder, CLIPTokenizer]:
    """transformers' `CLIPTextModelWithProjection`, whose projection `load_part` leaves out."""
    network = load_part(folder, "text_encoder", **options)
    if not isinstance(network, CLIPTextEncoder):
        raise CheckpointError(f"{folder}: expected CLIP's text encoder, got {type(network).__name__}")
    projection = read(folder, variant=options["variant"], mmap=options["mmap"]).tensors.get(PROJECTION)
    config = network.config
    if projection is None or projection.ndim != 2 or projection.shape[1] != config.width:
        found = None if projection is None else tuple(projection.shape)
        raise CheckpointError(f"{folder}: expected {PROJECTION} of (D, {config.width}), got {found}")
    if not all_finite(projection):
        raise CheckpointError(f"{folder}: {PROJECTION} has values that are not finite")
    weight: nn.Parameter = next(network.parameters())
    whole = blank(CLIPTextEncoder, replace(config, projection_dim=len(projection)))
    own = {"text_projection": projection.T.contiguous(), "logit_scale": torch.zeros(())}
    fill(whole, {**network.state_dict(), **own}, weight.device, weight.dtype)
    return whole, CLIPTokenizer(config.context_length, config.pad_token_id)


def _schedule(pipeline: Path) -> PriorSchedule | None:
    file = pipeline / SCHEDULER
    return prior_schedule(read_json(file)) if file.is_file() else None
