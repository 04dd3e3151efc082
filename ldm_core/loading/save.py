"""Writing a model: one file in the original layout, or a diffusers folder, tensor by tensor."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from ldm_core.checkpoint.key_map import Entry, KeyMap, to_file
from ldm_core.checkpoint.reader import Checkpoint
from ldm_core.checkpoint.values import all_finite
from ldm_core.checkpoint.writer import (
    WRITERS,
    Pending,
    checkpoint_errors,
    require_whole,
    write_safetensors,
    write_then_move,
)
from ldm_core.config import LatentDiffusionConfig
from ldm_core.errors import CheckpointError, ConfigError
from ldm_core.loading.diffusers_config import Words
from ldm_core.loading.diffusers_folder import added_tokens, merges_text, part_maps, settings
from ldm_core.loading.evidence import CONFIG_KEY, WORDS_KEY
from ldm_core.loading.match import differences
from ldm_core.loading.original_file import buffers, model_map
from ldm_core.loading.parts import PARTS, find_parts
from ldm_core.loading.shapes import prove_all
from ldm_core.noise_schedule import NoiseSchedule, betas_of
from ldm_core.support.atomic_files import write_whole_folder

LayoutName = Literal["compvis", "diffusers"]
Parameters = Mapping[str, Tensor]  # by "part.name"


class Model(Protocol):
    """What can be saved: three networks and their configuration."""

    @property
    def config(self) -> LatentDiffusionConfig: ...
    @property
    def text_encoder(self) -> nn.Module: ...
    @property
    def unet(self) -> nn.Module: ...
    @property
    def autoencoder(self) -> nn.Module: ...


def save(
    model: Model, path: str | Path, *, layout: LayoutName = "compvis", dtype: torch.dtype | None = None
) -> None:
    """Write a model.

    layout: "compvis", one file with the original's keys, `.safetensors`, or a PyTorch zip for `.ckpt` and
        `.pt`; or "diffusers", a new folder that `StableDiffusionPipeline.from_pretrained` reads.
    dtype: what to cast the weights to; None keeps each as it is.

    It is written under a temporary name and moved into place, so a crash leaves no half file and an older
    file whole. Adapters that are applied live are not in it, unless they are fused. Raises CheckpointError
    for another ending, a folder that is not there (or, for "diffusers", one that is), or a model whose
    parameters or noise schedule are not its configuration's, or with values that are not finite (in `dtype`).
    """
    schedule = getattr(model, "noise_schedule", None)
    if isinstance(schedule, NoiseSchedule) and not schedule.betas.equal(
        betas_of(model.config.noise_schedule)
    ):
        raise CheckpointError("the model's betas are not its configuration's, which is all that a file keeps")
    words = getattr(getattr(model, "tokenizer", None), "added_words", ())
    parameters = _parameters(model)
    if any(value.is_meta for value in parameters.values()):
        raise CheckpointError("the model is on the meta device and has no values to save")
    write_model(model.config, parameters, path, layout=layout, dtype=dtype, added_words=words)


def write_model(
    config: LatentDiffusionConfig,
    parameters: Mapping[str, Tensor | Pending],
    path: str | Path,
    *,
    layout: LayoutName = "compvis",
    dtype: torch.dtype | None = None,
    added_words: Words = (),
    overwrite: bool = True,
) -> None:
    """`save` for parameters by "part.name", some of which may only be made when they are written.

    added_words: what the tokenizer knows beyond CLIP's vocabulary; kept are those in the encoder's table.
    overwrite: False raises FileExistsError where there is a file, also one that appeared meanwhile.
    """
    path = Path(os.path.realpath(path))  # a link's target is what is to be written
    words = tuple(word for word in added_words if max(word[1]) < config.text_encoder.vocab_size)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise CheckpointError(f"dtype must be a floating-point type of torch, not {dtype!r}")
    if layout not in get_args(LayoutName):
        raise CheckpointError(f"layout must be 'compvis' or 'diffusers', not {layout!r}")
    _check_names(config, parameters)
    _check_shapes(config, parameters)
    if layout == "diffusers":
        _write_folder(config, parameters, path, dtype, words)
    else:
        _write_file(config, parameters, path, dtype, words, overwrite)


def file_tensors(model: Model) -> dict[str, Tensor]:
    """The tensors of `model` under the original file's keys, buffers included."""
    parameters = _parameters(model)
    _check_names(model.config, parameters)
    return to_file(model_map(model.config), parameters) | buffers(model.config)


def _parameters(model: Model) -> dict[str, Tensor]:
    parameters: dict[str, Tensor] = {}
    for part in PARTS:
        module = getattr(model, part)
        if not isinstance(module, nn.Module):
            kind = type(module).__name__
            raise CheckpointError(f"the model's {part} has no weights to save: it is a {kind}")
        parameters |= {f"{part}.{name}": value for name, value in module.state_dict().items()}
    return parameters


def _check_shapes(config: LatentDiffusionConfig, parameters: Mapping[str, Tensor | Pending]) -> None:
    """Raise CheckpointError where a file would contradict its own configuration."""
    pending = _pending(model_map(config), parameters, None)
    blanks = {key: torch.empty(value.shape, device="meta") for key, value in pending.items()}
    proven = prove_all(find_parts(Checkpoint(Path("the model"), "safetensors", blanks, {})))
    wrong = differences(config, proven)
    if wrong:
        raise CheckpointError(f"the model is not of its own configuration: {wrong[0]}")


def _check_names(config: LatentDiffusionConfig, parameters: Mapping[str, Any]) -> None:
    known = {name for entry in model_map(config).values() for name in entry.parameters}
    if known != set(parameters):
        odd = sorted(known ^ set(parameters))
        raise CheckpointError(
            f"the model's parameters are not those of its configuration: {len(odd)} differ, such as {odd[0]}"
        )


def _write_file(
    config: LatentDiffusionConfig,
    parameters: Mapping[str, Tensor | Pending],
    path: Path,
    dtype: torch.dtype | None,
    words: Words,
    overwrite: bool,
) -> None:
    tensors = _pending(model_map(config), parameters, dtype)
    tensors |= {key: _cast(_to_come(key, value), dtype) for key, value in buffers(config).items()}
    metadata = {"format": "pt", CONFIG_KEY: json.dumps(config.to_dict())}
    if words:
        metadata[WORDS_KEY] = json.dumps(words)
    if path.suffix not in WRITERS:
        raise CheckpointError(f"{path}: expected an ending of {', '.join(WRITERS)}, got {path.suffix!r}")
    write_then_move(path, lambda t: WRITERS[path.suffix](tensors, metadata, t), overwrite=overwrite)


def _write_folder(
    config: LatentDiffusionConfig,
    parameters: Mapping[str, Tensor | Pending],
    path: Path,
    dtype: torch.dtype | None,
    words: Words,
) -> None:
    try:
        files = settings(config) | added_tokens(words)
        texts = {name: json.dumps(value, indent=2) + "\n" for name, value in files.items()}
    except (KeyError, ConfigError) as error:
        raise CheckpointError(f"diffusers has no name for a setting of this model: {error}") from error
    texts["tokenizer/merges.txt"] = merges_text()

    def fill(folder: Path) -> None:
        for name, text in texts.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        for name, key_map in part_maps(config).items():
            file = folder / f"{name}.safetensors"
            write_safetensors(_pending(key_map, parameters, dtype), {"format": "pt"}, file)

    try:
        with checkpoint_errors(path):
            write_whole_folder(path, fill)
    except FileExistsError:
        raise CheckpointError(f"{path} is already there; folders are not overwritten") from None


def _pending(
    key_map: KeyMap, parameters: Mapping[str, Tensor | Pending], dtype: torch.dtype | None
) -> dict[str, Pending]:
    """The tensors of a file, each to be made from its parameters when it is written."""
    pending = {}
    for key, entry in key_map.items():
        values = [_to_come(name, parameters[name]) for name in entry.parameters]
        blanks = tuple(torch.empty(v.shape, dtype=v.dtype, device="meta") for v in values)
        stored = entry.transform.save(blanks)
        made = Pending(stored.dtype, tuple(stored.shape), partial(_join, entry, values))
        pending[key] = _finite(key, _cast(made, dtype))
    return pending


def _finite(key: str, pending: Pending) -> Pending:
    """The tensor, unless it has become what `load` would refuse."""

    def make() -> Tensor:
        tensor = pending.make()
        if not all_finite(tensor):
            kind = str(pending.dtype).removeprefix("torch.")
            raise CheckpointError(f"{key} has values that are not finite, or too large for {kind}")
        return tensor

    return Pending(pending.dtype, pending.shape, make)


def _to_come(name: str, value: Tensor | Pending) -> Pending:
    if isinstance(value, Pending):
        return value
    require_whole(value, name)
    return Pending(value.dtype, tuple(value.shape), lambda: value)


def _join(entry: Entry, values: list[Pending]) -> Tensor:
    return entry.transform.save(tuple(value.make() for value in values))


def _cast(pending: Pending, dtype: torch.dtype | None) -> Pending:
    """The tensor as it is to be stored; whole numbers stay what they are."""
    if dtype is None or not pending.dtype.is_floating_point or pending.dtype == dtype:
        return pending
    return Pending(dtype, pending.shape, lambda: pending.make().to(dtype))
