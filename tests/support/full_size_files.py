"""SD1 at its published size with random weights, and files of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.reference import random_model

from ldm_core.config import SD1
from ldm_core.loading.save import file_tensors
from ldm_core.model import LatentDiffusion


@pytest.fixture(scope="module")
def full_sd1() -> LatentDiffusion:
    return random_model(SD1)


@pytest.fixture(scope="module")
def sd1_files(
    full_sd1: LatentDiffusion, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Path]]:
    """SD1's 1,131 tensors and nothing else, as .safetensors and as .ckpt: 4.3 GB each, removed at the end."""
    folder = tmp_path_factory.mktemp("sd1")
    paths = {"safetensors": folder / "sd1.safetensors", "ckpt": folder / "sd1.ckpt"}
    tensors = file_tensors(full_sd1)
    assert len(tensors) == 1131
    save_file(tensors, paths["safetensors"])
    torch.save({"state_dict": tensors}, paths["ckpt"])
    yield paths
    for path in paths.values():
        path.unlink()
