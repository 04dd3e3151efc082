"""Small models, and the names and shapes of published controls."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from support.configs import SMALL_SD1
from support.reference import random_model

from ldm_core.model import LatentDiffusion


@pytest.fixture(scope="session")
def adapters() -> dict[str, dict[str, Any]]:
    """Tensor names and shapes of published ControlNets and adapters, by name."""
    path = Path(__file__).parents[1] / "data" / "adapter-models.json.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return json.load(file)["models"]


@pytest.fixture(scope="session")
def model() -> LatentDiffusion:
    """A small model of random weights with SD1's structure. Do not change its weights."""
    return random_model(SMALL_SD1)
