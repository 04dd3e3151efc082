"""A workbench with a tiny model of random weights, for what is computed rather than what is seen."""

from __future__ import annotations

import pytest
from support.configs import TINY
from support.random_models import random_model

import ldm_core
from ldm_core.workbench import Grid, Workbench


@pytest.fixture(scope="session")
def tiny() -> ldm_core.LatentDiffusion:
    """SD1 of two levels: 32 pixels, 2 for a latent; sides are multiples of 4. Do not change its weights."""
    return random_model(TINY["sd1"])


@pytest.fixture
def bench(tiny: ldm_core.LatentDiffusion) -> Workbench:
    return Workbench(ldm_core.Sampler(tiny), steps=1, guidance_scale=3, count=2)


@pytest.fixture(scope="session")
def grid(tiny: ldm_core.LatentDiffusion) -> Grid:
    """Four pictures of 36x24."""
    bench = Workbench(ldm_core.Sampler(tiny), steps=1, guidance_scale=3)
    return bench.imagine("a cat --ar 3:2 --no dog --seed 7")
