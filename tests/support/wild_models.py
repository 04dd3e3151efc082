"""Small models for the tests of files in the wild."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.configs import TINY
from support.reference import random_model
from torch import Tensor

from ldm_core.loading.save import file_tensors
from ldm_core.model import LatentDiffusion

Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def sd1() -> LatentDiffusion:
    return random_model(TINY["sd1"])


@pytest.fixture(scope="module")
def sd2() -> LatentDiffusion:
    return random_model(TINY["sd2"])


def original(model: LatentDiffusion) -> Tensors:
    return {key: value.contiguous() for key, value in file_tensors(model).items()}


def write(tensors: Tensors, path: Path) -> Path:
    """Each tensor in memory of its own, as the safetensors library wants it."""
    if path.suffix == ".safetensors":
        save_file({key: value.contiguous().clone() for key, value in tensors.items()}, path)
    else:
        torch.save(tensors, path)
    return path
