"""The state of a run in one file: weights, their average, the optimizer's moments, and how far it is.

Data order and noise are functions of the seed and the position (`order`), so this is all that an exact resume
needs. The file (safetensors) is written under another name and moved when it is whole, so that whatever
happens there is a whole one; nothing in it is code. It is one file of whole tensors however many processes
there were, and any number of them can go on from it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm_core.checkpoint import CheckpointError, read
from ldm_core.checkpoint.writer import Pending, is_sliced, write_safetensors, write_then_move
from ldm_core.support.json_text import parse_json
from ldm_core.support.limits import is_whole
from ldm_core.support.printable import few
from ldm_core.training.distributed import World, assign, full_tensor
from ldm_core.training.ema import WeightAverage
from ldm_core.training.muon import Muon

KEY = "ldm_core.training"  # of the JSON in the file's metadata
PROGRESS = {"step", "position", "length", "settings"}  # what there must be in it


@dataclass
class TrainingState:
    """What a run changes."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None

    def parameters(self) -> dict[str, Tensor]:
        return {name: p for name, p in self.module.named_parameters() if p.requires_grad}

    def tensors(self) -> dict[str, Tensor]:
        """Everything under its name in the file."""
        tensors = {f"weight.{name}": p for name, p in self.parameters().items()}
        tensors |= {f"buffer.{name}": buffer for name, buffer in self.module.named_buffers()}
        if self.average is not None:
            tensors |= {f"average.{name}": tensor for name, tensor in self.average.tensors.items()}
        for name, p in self.parameters().items():
            for moment, value in self.optimizer.state.get(p, {}).items():
                tensors[f"optimizer.{moment}.{name}"] = value
        return tensors


def save_state(path: Path, trained: TrainingState, progress: Mapping[str, Any], world: World) -> None:
    """Write the state; every process must call it, and the first one writes.

    Raises CheckpointError where it cannot be written, on a full disk for one; the file that was there is then
    as it was.
    """
    pending: dict[str, Pending] = {}
    for name, tensor in trained.tensors().items():
        sliced, tensor = is_sliced(tensor), full_tensor(tensor)
        if world.is_first:
            if sliced:
                tensor = tensor.cpu()  # on a GPU there is no room for all of them whole
            pending[name] = Pending(tensor.dtype, tuple(tensor.shape), partial(torch.Tensor.cpu, tensor))
    if world.is_first:
        metadata = {"format": "pt", KEY: json.dumps(dict(progress))}
        write_then_move(path, lambda target: write_safetensors(pending, metadata, target))


def load_state(
    path: Path, trained: TrainingState, accept: Callable[[Mapping[str, Any]], None]
) -> dict[str, Any]:
    """Put everything back in place, and return the progress that was saved with it.

    accept: is shown the progress before anything changes, and raises an error where it is of no use.

    Raises CheckpointError for a file that is damaged or no such state, and for one of another
    architecture, naming tensors that differ; nothing has changed then.
    """
    checkpoint = read(path)
    try:
        progress = _progress(checkpoint.metadata.get(KEY))
    except ValueError as error:
        raise CheckpointError(f"{path}: not the state of a training run ({error})") from error
    accept(progress)
    parameters, saved = trained.parameters(), checkpoint.tensors
    _compare(path, trained, saved)

    for name, tensor in trained.tensors().items():
        if not name.startswith("optimizer."):
            assign(tensor, saved[name])
    trained.optimizer.state.clear()
    for key, value in saved.items():
        kind, _, rest = key.partition(".")
        if kind == "optimizer":
            moment, _, name = rest.partition(".")
            state = trained.optimizer.state[parameters[name]]
            state[moment] = value.clone() if moment == "step" else _moment(parameters[name], value)
    return progress


def _progress(text: Any) -> dict[str, Any]:
    """The progress in a file's metadata. Raises ValueError for any other text."""
    if not isinstance(text, str):
        raise ValueError(f"it has no metadata named {KEY}")
    progress = parse_json(text, "its progress")
    if not isinstance(progress, dict):
        raise ValueError(f"its progress is a {type(progress).__name__}, not a mapping")
    if not progress.keys() >= PROGRESS:
        raise ValueError(f"it lacks {', '.join(sorted(PROGRESS - progress.keys()))}")
    for name in ("step", "position", "length"):
        if not is_whole(progress[name], 0, 2**63 - 1):
            raise ValueError(f"its {name} must be an integer from 0")
    if not isinstance(progress["settings"], dict):
        raise ValueError("its settings are not a mapping")
    if not isinstance(progress.get("data"), str | None):
        raise ValueError("its fingerprint of the data is not text")
    return progress


@torch.no_grad()
def load_weights(module: nn.Module, path: str | Path, *, averaged: bool = True) -> None:
    """Give a module, as it was trained, the weights of a saved state, or their average: to use or save it.

    Raises CheckpointError, and changes nothing, where the state's tensors are not the module's.
    """
    saved, kind = read(path).tensors, "average" if averaged else "weight"
    parameters = {f"{kind}.{name}": p for name, p in module.named_parameters() if p.requires_grad}
    wrong = [n for n, p in parameters.items() if n not in saved or not _fits(saved[n], p)]
    wrong += [name for name in saved if name.startswith(f"{kind}.") and name not in parameters]
    if wrong:
        raise CheckpointError(f"{path}: not the weights of this module, which differ in {few(wrong, 1)}")
    for name, parameter in parameters.items():
        assign(parameter, saved[name])


def _moment(parameter: Tensor, value: Tensor) -> Tensor:
    """An optimizer's tensor, laid out as its parameter is."""
    tensor = torch.zeros_like(parameter, requires_grad=False)
    assign(tensor, value)
    return tensor


def _moments(optimizer: torch.optim.Optimizer, parameter: Tensor) -> set[str]:
    """The names of what the optimizer keeps of a parameter from its first step on."""
    if isinstance(optimizer, Muon):
        return optimizer.moments(parameter)
    return {"step", "exp_avg", "exp_avg_sq"}


def _fits(tensor: Tensor, place: Tensor) -> bool:
    return tensor.shape == place.shape and torch.can_cast(tensor.dtype, place.dtype)


def _compare(path: Path, trained: TrainingState, saved: Mapping[str, Tensor]) -> None:
    parameters = trained.parameters()
    wanted = {n: tuple(t.shape) for n, t in trained.tensors().items() if not n.startswith("optimizer.")}
    found = {n: tuple(t.shape) for n, t in saved.items() if not n.startswith("optimizer.")}
    wrong = [f"{name} is missing" for name in wanted if name not in found]
    wrong += [f"{name} has no place" for name in found if name not in wanted]
    wrong += [
        f"{name} has shape {found[name]}, expected {shape}"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    wrong += [
        f"{name} is of {saved[name].dtype}, expected {tensor.dtype}"
        for name, tensor in trained.tensors().items()
        if name in found and not torch.can_cast(saved[name].dtype, tensor.dtype)
    ]
    moments: dict[str, set[str]] = {}
    for name, tensor in saved.items():
        kind, _, rest = name.partition(".")
        if kind == "optimizer":
            moment, _, parameter = rest.partition(".")
            like = torch.zeros(()) if moment == "step" else parameters.get(parameter)
            fits = parameter in parameters and like is not None and _fits(tensor, like)
            wrong += [] if fits else [f"{name} has no place"]
            moments.setdefault(parameter, set()).add(moment)
    for parameter, kept in moments.items():
        if parameter in parameters:
            expected = _moments(trained.optimizer, parameters[parameter])
            wrong += [f"optimizer.{moment}.{parameter} is missing" for moment in sorted(expected - kept)]
            wrong += [f"optimizer.{moment}.{parameter} has no place" for moment in sorted(kept - expected)]
    if wrong:
        raise CheckpointError(f"{path}: the state of a run of another architecture: {few(wrong, 5, '; ')}")
