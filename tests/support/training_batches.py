"""A batch and random streams, for the tests of losses."""

from __future__ import annotations

from typing import Any

import torch
from support.training_runs import pictures

from ldm_core.training import TensorSamples
from ldm_core.training.order import noise_streams
from ldm_core.training.samples import collate


def batch(count: int = 2, size: int = 16) -> dict[str, Any]:
    samples: TensorSamples = pictures(count, size)
    return collate([samples[i] for i in range(count)])


def streams(count: int = 2, seed: int = 0) -> list[torch.Generator]:
    return noise_streams(seed, range(count))
