"""A small checkpoint for the tests of loading."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file
from support.configs import TINY
from support.reference import random_model
from torch import Tensor

from ldm_core.checkpoint import save
from ldm_core.model import LatentDiffusion


@pytest.fixture
def small(tmp_path: Path) -> tuple[LatentDiffusion, Path]:
    model = random_model(TINY["sd1"])
    save(model, tmp_path / "small.safetensors")
    return model, tmp_path / "small.safetensors"


def tensors_of(path: Path) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in load_file(path).items()}
