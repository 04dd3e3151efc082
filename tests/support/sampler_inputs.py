"""Pictures, masks and sizes for the tests of the sampler."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_core.model import LatentDiffusion

SIZE = 128  # pixels of a side of the bundled model's pictures


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """128×128, with something different in every quarter."""
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    return Image.fromarray(np.stack([2 * x, 2 * y, 255 - x - y], axis=-1).astype(np.uint8))


def counting(model: LatentDiffusion) -> tuple[LatentDiffusion, list[int]]:
    """The model with a U-Net that notes how many rows each call has."""
    rows: list[int] = []

    def unet(x: torch.Tensor, t: Any, context: torch.Tensor) -> torch.Tensor:
        rows.append(len(x))
        return model.unet(x, t, context)

    wrapped = replace(model, unet=unet)
    return wrapped, rows
