"""Models with random weights. This file imports nothing but the package, as the tests on a GPU need."""

from __future__ import annotations

from typing import Any

import torch

from ldm_core import build
from ldm_core.config import LatentDiffusionConfig


def random_model(config: LatentDiffusionConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """A model with random weights of which none is zero or one, so that no term can hide."""
    torch.manual_seed(seed)
    model = build(config)
    for module in model.modules.values():
        for parameter in module.parameters():
            if parameter.ndim <= 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
    return model.to(dtype=dtype)
