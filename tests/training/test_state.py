"""Training states that are damaged or made to do harm are refused in words, and nothing changes then."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoint_files import torch_bytes
from torch import Tensor, nn

from ldm_core.checkpoint import CheckpointError
from ldm_core.training.distributed import World
from ldm_core.training.ema import WeightAverage
from ldm_core.training.muon import Muon
from ldm_core.training.state import KEY, TrainingState, load_state, load_weights, save_state

PROGRESS = {"step": 1, "position": 4, "length": 20, "data": "abc", "settings": {"steps": 3}}
NAMES = ("weight", "bias")


def trained(optimizer: str = "adamw") -> TrainingState:
    """A small module after one step."""
    torch.manual_seed(0)
    module = nn.Linear(2, 3)
    module.register_buffer("count", torch.tensor(7))
    used = torch.optim.AdamW(module.parameters(), lr=0.1)
    if optimizer == "muon":
        used = Muon([{"params": list(module.parameters())}], [module.weight], lr=0.1)
    result = TrainingState(module, used, WeightAverage(module))
    step(result)
    return result


def step(state: TrainingState) -> None:
    state.module(torch.ones(1, 2)).square().sum().backward()
    state.optimizer.step()
    state.optimizer.zero_grad()


def everything(state: TrainingState) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.tensors().items()}


def written(folder: Path, optimizer: str = "adamw") -> tuple[dict[str, Tensor], Path]:
    path = folder / "state.safetensors"
    save_state(path, trained(optimizer), PROGRESS, World())
    return load_file(path), path


def assert_loaded_or_refused(path: Path, optimizer: str = "adamw") -> bool:
    state = trained(optimizer)
    before = everything(state)
    try:
        load_state(path, state, lambda progress: None)
    except CheckpointError as error:
        message = str(error)
    else:
        step(state)
        return True
    assert message.startswith(str(path))
    after = everything(state)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    return False


PROGRESSES: list[Any] = [
    *(None, [], 3, "text", {}, {**PROGRESS, "settings": []}, {**PROGRESS, "data": ["a"]}),
    *({**PROGRESS, name: value} for name in ("step", "position", "length") for value in ("3", -1, 1.5, None)),
    *({**PROGRESS, "step": value} for value in (True, 2**64, [1], float("nan"))),
]


@pytest.mark.parametrize("progress", [*map(json.dumps, PROGRESSES), "", "{", "[" * 100_000, "9" * 5000])
def test_progress_that_is_none_is_refused(tmp_path: Path, progress: str) -> None:
    tensors, path = written(tmp_path)
    save_file(tensors, path, {KEY: progress})
    with pytest.raises(CheckpointError, match=r"state.safetensors: not a training state \("):
        load_state(path, trained(), lambda progress: None)
    assert not assert_loaded_or_refused(path)


def test_a_pickle_with_such_metadata_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    path.write_bytes(torch_bytes({"weight.weight": torch.zeros(2), KEY: {"step": 3}}))
    assert not assert_loaded_or_refused(path)


EDITS: dict[str, Callable[[Tensor], Tensor | None]] = {
    "missing": lambda tensor: None,
    "flat": lambda tensor: tensor.flatten().clone(),
    "longer": lambda tensor: torch.zeros(*tensor.shape, 2),
    "empty": lambda tensor: torch.zeros(0),
    "complex": lambda tensor: tensor.to(torch.complex64),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("edit", EDITS)
def test_each_tensor_must_fit(tmp_path: Path, edit: str, optimizer: str) -> None:
    tensors, path = written(tmp_path, optimizer)
    assert assert_loaded_or_refused(path, optimizer)
    metadata = {KEY: json.dumps(PROGRESS)}
    for name in tensors:
        changed = EDITS[edit](tensors[name])
        if edit != "complex" and changed is not None and changed.shape == tensors[name].shape:
            continue
        if changed is None and name == "optimizer.momentum.weight":
            continue  # it is all that Muon keeps of a weight, and one without a gradient has none
        others = {key: tensor for key, tensor in tensors.items() if key != name}
        save_file(others if changed is None else {**others, name: changed}, path, metadata)
        assert not assert_loaded_or_refused(path, optimizer), name
        if name.startswith("weight."):
            with pytest.raises(CheckpointError, match="its weights do not match the module"):
                load_weights(trained().module, path, averaged=False)


@pytest.mark.parametrize(
    "name",
    [
        *("optimizer", "optimizer.", "optimizer.step", "optimizer.step.", "optimizer.momentum.weight"),
        *("optimizer.other.bias", "optimizer.exp_avg.none", "weight", "weight.", "buffer.x", "average.", ""),
    ],
)
def test_tensors_without_a_place_are_refused(tmp_path: Path, name: str) -> None:
    tensors, path = written(tmp_path)
    save_file({**tensors, name: torch.zeros(3)}, path, {KEY: json.dumps(PROGRESS)})
    assert not assert_loaded_or_refused(path)


def test_damaged_states_are_loaded_or_refused(tmp_path: Path) -> None:
    _, path = written(tmp_path)
    whole, chance = path.read_bytes(), random.Random(0)
    outcomes = []
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(data))
            data[at : at + chance.randint(0, 2)] = chance.randbytes(chance.randint(0, 2))
        path.unlink()
        path.write_bytes(data)
        outcomes.append(assert_loaded_or_refused(path))
    assert 0 < sum(outcomes) < 300
