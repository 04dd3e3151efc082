"""A batch and random generators, for the tests of losses."""

from __future__ import annotations

from typing import Any

import torch
from support.training_runs import pictures

from ldm_core.training import TensorDataset
from ldm_core.training.data_order import noise_generators
from ldm_core.training.dataset import collate


def batch(count: int = 2, size: int = 16) -> dict[str, Any]:
    samples: TensorDataset = pictures(count, size)
    return collate([samples[i] for i in range(count)])


def generators(count: int = 2, seed: int = 0) -> list[torch.Generator]:
    return noise_generators(seed, range(count))
