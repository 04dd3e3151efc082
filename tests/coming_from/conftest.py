"""The small model that the pages about CompVis's and k-diffusion's lines call sd-v1-4.ckpt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.compvis import CompVisModel, DDIMSampler, PLMSSampler
from support.configs import TINY
from support.paired_blocks import attentive
from support.random_models import random_model

import ldm_core


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The names that the first blocks take for granted, with the file in the working directory."""
    model = attentive(random_model(TINY["sd1"]))
    folder = tmp_path_factory.mktemp("files")
    path: Path = folder / "sd-v1-4.safetensors"
    ldm_core.save(model, path)
    path.rename(folder / "sd-v1-4.ckpt")  # the format is told by the content
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield {
            "model": CompVisModel(model),
            "DDIMSampler": DDIMSampler,
            "PLMSSampler": PLMSSampler,
            "torch": torch,
            "init_image": pixels,
        }
