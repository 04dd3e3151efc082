"""Saves and loads the state of a run: weights, their average, optimizer state and progress.

Data order and noise are functions of the seed and the position (`data_order`), so an exact resume needs
nothing else. The state is one safetensors file of full tensors, which any number of processes can resume
from. It is written to a temporary file and renamed, so that the previous state stays intact if writing fails.
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

KEY = "ldm_core.training"  # metadata key of the progress, as JSON
PROGRESS = {"step", "position", "length", "settings"}  # required entries of the progress


@dataclass
class TrainingState:
    """The objects whose tensors a run changes."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None

    def parameters(self) -> dict[str, Tensor]:
        return {name: p for name, p in self.module.named_parameters() if p.requires_grad}

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by their names in the file."""
        tensors = {f"weight.{name}": p for name, p in self.parameters().items()}
        tensors |= {f"buffer.{name}": buffer for name, buffer in self.module.named_buffers()}
        if self.average is not None:
            tensors |= {f"average.{name}": tensor for name, tensor in self.average.tensors.items()}
        for name, p in self.parameters().items():
            for moment, value in self.optimizer.state.get(p, {}).items():
                tensors[f"optimizer.{moment}.{name}"] = value
        return tensors


def save_state(path: Path, trained: TrainingState, progress: Mapping[str, Any], world: World) -> None:
    """Save the state. Every process must call this; rank 0 writes the file.

    Raises CheckpointError if it cannot be written, for example on a full disk; an existing file stays intact.
    """
    pending: dict[str, Pending] = {}
    for name, tensor in trained.tensors().items():
        sliced, tensor = is_sliced(tensor), full_tensor(tensor)
        if world.is_first:
            if sliced:
                tensor = tensor.cpu()  # all full tensors together may not fit on a GPU
            pending[name] = Pending(tensor.dtype, tuple(tensor.shape), partial(torch.Tensor.cpu, tensor))
    if world.is_first:
        metadata = {"format": "pt", KEY: json.dumps(dict(progress))}
        write_then_move(path, lambda target: write_safetensors(pending, metadata, target))


def load_state(
    path: Path, trained: TrainingState, accept: Callable[[Mapping[str, Any]], None]
) -> dict[str, Any]:
    """Load a saved state in place and return its progress.

    accept: called with the progress before anything changes; may raise an error to reject it.

    Raises CheckpointError, before anything changes, for a damaged file, a file of another kind, or tensors of
    another architecture.
    """
    checkpoint = read(path)
    try:
        progress = _progress(checkpoint.metadata.get(KEY))
    except ValueError as error:
        raise CheckpointError(f"{path}: not a training state ({error})") from error
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
    """Parse the progress in a file's metadata. Raises ValueError if it is invalid."""
    if not isinstance(text, str):
        raise ValueError(f"its metadata has no {KEY}")
    progress = parse_json(text, "its progress")
    if not isinstance(progress, dict):
        raise ValueError(f"its progress must be a mapping, not a {type(progress).__name__}")
    if not progress.keys() >= PROGRESS:
        raise ValueError(f"it lacks {', '.join(sorted(PROGRESS - progress.keys()))}")
    for name in ("step", "position", "length"):
        if not is_whole(progress[name], 0, 2**63 - 1):
            raise ValueError(f"its {name} must be an integer of 0 or more")
    if not isinstance(progress["settings"], dict):
        raise ValueError("its settings must be a mapping")
    if not isinstance(progress.get("data"), str | None):
        raise ValueError("its fingerprint of the data must be a string")
    return progress


@torch.no_grad()
def load_weights(module: nn.Module, path: str | Path, *, averaged: bool = True) -> None:
    """Load the weights of a saved training state into a module, in place.

    module: the objective, or another module with the same trainable parameters. path: the state file.
    averaged: load the moving average of the weights instead of the last weights.
    Raises CheckpointError, before anything changes, if the tensors do not match.
    """
    saved, kind = read(path).tensors, "average" if averaged else "weight"
    parameters = {f"{kind}.{name}": p for name, p in module.named_parameters() if p.requires_grad}
    wrong = [n for n, p in parameters.items() if n not in saved or not _fits(saved[n], p)]
    wrong += [name for name in saved if name.startswith(f"{kind}.") and name not in parameters]
    if wrong:
        raise CheckpointError(
            f"{path}: its weights do not match the module: {few(wrong, 1)} differ in name, shape or dtype"
        )
    for name, parameter in parameters.items():
        assign(parameter, saved[name])


def _moment(parameter: Tensor, value: Tensor) -> Tensor:
    """An optimizer tensor with the parameter's device, dtype and sharding."""
    tensor = torch.zeros_like(parameter, requires_grad=False)
    assign(tensor, value)
    return tensor


def _moments(optimizer: torch.optim.Optimizer, parameter: Tensor) -> set[str]:
    """The names of the optimizer's state tensors of a parameter after its first step."""
    if isinstance(optimizer, Muon):
        return optimizer.moments(parameter)
    return {"step", "exp_avg", "exp_avg_sq"}


def _fits(tensor: Tensor, place: Tensor) -> bool:
    return tensor.shape == place.shape and torch.can_cast(tensor.dtype, place.dtype)


def _compare(path: Path, trained: TrainingState, saved: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError, naming up to five differences, if the saved tensors do not fit."""
    parameters = trained.parameters()
    wanted = {n: t for n, t in trained.tensors().items() if not n.startswith("optimizer.")}
    stepped = {
        name.split(".", 2)[2] for name in saved if name.startswith("optimizer.") and name.count(".") > 1
    }
    for name in sorted(stepped & parameters.keys()):
        for moment in sorted(_moments(trained.optimizer, parameters[name])):
            like = torch.zeros(()) if moment == "step" else parameters[name]
            wanted[f"optimizer.{moment}.{name}"] = like
    wrong = [f"{name} is missing" for name in wanted if name not in saved]
    wrong += [f"{name} is unexpected" for name in saved if name not in wanted]
    for name, ours in wanted.items():
        theirs = saved.get(name, ours)
        if ours.shape != theirs.shape:
            wrong.append(f"{name} has shape {tuple(theirs.shape)}, expected {tuple(ours.shape)}")
        elif not _fits(theirs, ours):
            wrong.append(f"{name} has dtype {theirs.dtype}, expected {ours.dtype}")
    if wrong:
        raise CheckpointError(f"{path}: the state does not match the architecture: {few(wrong, 5, '; ')}")
