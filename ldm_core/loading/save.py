"""Save a model as one file in the original layout or as a diffusers folder, tensor by tensor."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from ldm_core.checkpoint.key_map import Entry, KeyMap, to_file
from ldm_core.checkpoint.values import all_finite
from ldm_core.checkpoint.writer import (
    WRITERS,
    Pending,
    checkpoint_errors,
    require_whole,
    write_safetensors,
    write_then_move,
    write_torch_zip,
)
from ldm_core.config import LatentDiffusionConfig
from ldm_core.errors import CheckpointError, ConfigError
from ldm_core.loading.diffusers_config import Words
from ldm_core.loading.diffusers_folder import added_tokens, as_text, filled, part_maps, settings
from ldm_core.loading.evidence import CONFIG_KEY, PARTS_KEY, WORDS_KEY
from ldm_core.loading.original_file import buffers, file_map
from ldm_core.loading.parts import part_configs, part_of
from ldm_core.nn.placement import parameter_shapes
from ldm_core.noise_schedule import NoiseSchedule, betas_of
from ldm_core.restoration.restorer import Restorer
from ldm_core.support.atomic_files import write_whole_folder

LayoutName = Literal["compvis", "diffusers"]


class Model(Protocol):
    """A model that can be saved: networks in attributes with the same names as in its configuration."""

    @property
    def config(self) -> LatentDiffusionConfig: ...


def save(
    model: Model | nn.Module | Restorer,
    path: str | Path,
    *,
    layout: LayoutName = "compvis",
    dtype: torch.dtype | None = None,
) -> None:
    """Write a model, or one network of a kind registered in `ldm_core.loading.parts`.

    layout: "compvis", one file with the original keys, `.safetensors` or a PyTorch zip (`.ckpt`, `.pt`; for
        a network for faces also `.pth`, which the original scripts read); or
        "diffusers", a new folder for `StableDiffusionPipeline.from_pretrained`.
    dtype: the dtype of the stored weights; None keeps each as it is.

    The target is written under a temporary name and moved into place, so a crash leaves no partial file and
    keeps an older one. Adapters are saved only if they are fused. Raises CheckpointError for another suffix,
    a missing parent folder (or, for "diffusers", an existing target), a model whose parameters or noise
    schedule do not match its configuration, or values that are not finite (in `dtype`).
    """
    config, networks = _networks(model)
    schedule = getattr(model, "noise_schedule", None)
    if isinstance(schedule, NoiseSchedule) and not schedule.betas.equal(betas_of(config.noise_schedule)):
        raise CheckpointError(
            "the model's betas do not match its configuration, from which a file restores them"
        )
    words = getattr(getattr(model, "tokenizer", None), "added_words", ())
    parameters = _parameters(networks)
    if any(value.is_meta for value in parameters.values()):
        raise CheckpointError("the model is on the meta device and has no values to save")
    write_model(config, parameters, path, layout=layout, dtype=dtype, added_words=words)


def write_model(
    config: Any,
    parameters: Mapping[str, Tensor | Pending],
    path: str | Path,
    *,
    layout: LayoutName = "compvis",
    dtype: torch.dtype | None = None,
    added_words: Words = (),
    overwrite: bool = True,
) -> None:
    """`save` for parameters by "slot.name", some of which are computed only when they are written.

    config: of a model or of a single part.
    added_words: words added to CLIP's vocabulary; those outside the encoder's table are dropped.
    overwrite: False raises FileExistsError if the target exists, even if it was created in the meantime.
    """
    path = Path(os.path.realpath(path))  # write to the target of a link
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise CheckpointError(f"dtype must be a floating-point type of torch, not {dtype!r}")
    if layout not in get_args(LayoutName):
        raise CheckpointError(f"layout must be 'compvis' or 'diffusers', not {layout!r}")
    configs = _configs(config)
    known = [own.vocab_size for own in configs.values() if part_of(own).adds_words]
    words = tuple(word for word in added_words if known and max(word[1]) < known[0])
    _check(configs, parameters)
    if layout == "compvis":
        _write_file(config, configs, parameters, path, dtype, words, overwrite)
    elif isinstance(config, LatentDiffusionConfig):
        _write_folder(config, parameters, path, dtype, words)
    else:
        raise CheckpointError(f"{path}: a diffusers folder contains a whole model, not one part of it")


def file_tensors(model: Model) -> dict[str, Tensor]:
    """The tensors of `model` under the keys of the original layout, buffers included."""
    config, networks = _networks(model)
    configs, parameters = _configs(config), _parameters(networks)
    _check(configs, parameters)
    return to_file(file_map(configs), parameters) | buffers(configs)


def _networks(model: Any) -> tuple[Any, dict[str, nn.Module]]:
    """(the configuration, the networks by slot) of a model or of a single part."""
    model = model.network if isinstance(model, Restorer) else model
    config = getattr(model, "config", None)
    if not isinstance(config, LatentDiffusionConfig):
        return config, {part_of(config).slot: model}
    own = getattr(getattr(model, "conditioner", None), "config", None)
    if type(own) is type(config.conditioner):  # unCLIP's may have been given an image encoder since
        config = replace(config, conditioner=own)
    modules = getattr(model, "modules", {})
    modules = modules if isinstance(modules, Mapping) else {}
    networks = {slot: modules.get(slot, getattr(model, slot, None)) for slot in part_configs(config)}
    for slot, module in networks.items():
        if not isinstance(module, nn.Module):
            kind = type(module).__name__
            raise CheckpointError(f"the model's {slot} has no weights to save: it is a {kind}")
    return config, networks


def _configs(config: Any) -> dict[str, Any]:
    """The configurations of the parts, by slot."""
    return (
        part_configs(config) if isinstance(config, LatentDiffusionConfig) else {part_of(config).slot: config}
    )


def _parameters(networks: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    return {
        f"{slot}.{n}": value for slot, module in networks.items() for n, value in module.state_dict().items()
    }


def _check(configs: Mapping[str, Any], parameters: Mapping[str, Tensor | Pending]) -> None:
    """Raise CheckpointError if the parameters do not match the configuration by name and shape."""
    wanted = {
        f"{slot}.{name}": tuple(shape)
        for slot, config in configs.items()
        for name, shape in parameter_shapes(part_of(config).network, config).items()
    }
    written = {name for entry in file_map(configs).values() for name in entry.parameters}
    odd = sorted((wanted.keys() ^ parameters.keys()) | (written ^ parameters.keys()))
    if odd:
        raise CheckpointError(
            f"the model's parameters do not match its configuration: {len(odd)} differ, such as {odd[0]}"
        )
    for name, shape in wanted.items():
        ours = tuple(parameters[name].shape)
        if ours != shape:
            raise CheckpointError(
                f"the model does not match its configuration: {name}: expected {shape}, got {ours}"
            )


def _write_file(
    config: Any,
    configs: Mapping[str, Any],
    parameters: Mapping[str, Tensor | Pending],
    path: Path,
    dtype: torch.dtype | None,
    words: Words,
    overwrite: bool,
) -> None:
    tensors = _pending(file_map(configs), parameters, dtype)
    tensors |= {key: _cast(_to_come(key, value), dtype) for key, value in buffers(configs).items()}
    metadata = {"format": "pt"}
    if isinstance(config, LatentDiffusionConfig):
        metadata[CONFIG_KEY] = json.dumps(config.to_dict())
    else:
        metadata[PARTS_KEY] = json.dumps({part_of(config).name: asdict(config)})
    if words:
        metadata[WORDS_KEY] = json.dumps(words)
    writers = {**WRITERS, **_pth_writer(configs)}
    if path.suffix not in writers:
        raise CheckpointError(
            f"{path}: expected one of the suffixes {', '.join(writers)}, got {path.suffix!r}"
        )
    write_then_move(path, lambda t: writers[path.suffix](tensors, metadata, t), overwrite=overwrite)


def _pth_writer(configs: Mapping[str, Any]) -> dict[str, Callable[..., None]]:
    """The writer of `.pth` files, for a network whose original program reads them."""
    (own, *others) = configs.values()
    part = part_of(own)
    entry = part.layout(part.written(own)).pth_entry
    return {} if others or entry is None else {".pth": partial(write_torch_zip, entry=entry)}


def _write_folder(
    config: LatentDiffusionConfig,
    parameters: Mapping[str, Tensor | Pending],
    path: Path,
    dtype: torch.dtype | None,
    words: Words,
) -> None:
    try:
        files = settings(config) | added_tokens(words)
        texts, maps = {name: as_text(value) for name, value in files.items()}, part_maps(config)
        parameters = {**filled(config), **parameters}
    except (KeyError, ConfigError) as error:
        raise CheckpointError(f"diffusers' settings cannot describe this model: {error}") from error

    def fill(folder: Path) -> None:
        for name, text in texts.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        for name, key_map in maps.items():
            file = folder / f"{name}.safetensors"
            write_safetensors(_pending(key_map, parameters, dtype), {"format": "pt"}, file)

    try:
        with checkpoint_errors(path):
            write_whole_folder(path, fill)
    except FileExistsError:
        raise CheckpointError(f"{path} already exists; folders are not overwritten") from None


def _pending(
    key_map: KeyMap, parameters: Mapping[str, Tensor | Pending], dtype: torch.dtype | None
) -> dict[str, Pending]:
    """The tensors of a file, each computed from its parameters when it is written."""
    pending = {}
    for key, entry in key_map.items():
        values = [_to_come(name, parameters[name]) for name in entry.parameters]
        blanks = tuple(torch.empty(v.shape, dtype=v.dtype, device="meta") for v in values)
        stored = entry.transform.save(blanks)
        made = Pending(stored.dtype, tuple(stored.shape), partial(_join, entry, values))
        pending[key] = _finite(key, _cast(made, dtype))
    return pending


def _finite(key: str, pending: Pending) -> Pending:
    """The tensor. Raises CheckpointError when written if it has values that are not finite."""

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
    """The tensor cast to `dtype`; integers are not cast."""
    if dtype is None or not pending.dtype.is_floating_point or pending.dtype == dtype:
        return pending
    return Pending(dtype, pending.shape, lambda: pending.make().to(dtype))
