"""A run that nothing happens to, to compare others with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.training_runs import run

from ldm_core.checkpoint import read


def same_state(one: Path, other: Path) -> bool:
    a, b = read(one / "state.safetensors").tensors, read(other / "state.safetensors").tensors
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 12 steps that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return folder
