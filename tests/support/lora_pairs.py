"""What the tests of LoRA files share."""

from __future__ import annotations

import pytest
from support.adapter_files import (
    Pair,
)
from support.configs import SMALL, TINY

PAIRS = [
    pytest.param(TINY["sd1"], id="sd1"),
    pytest.param(TINY["sd2"], id="sd2"),
    pytest.param(SMALL["sd1"], id="four levels, sd1", marks=pytest.mark.slow),
    pytest.param(SMALL["sd2"], id="four levels, sd2", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module", params=PAIRS)
def small_pair(request: pytest.FixtureRequest) -> Pair:
    return Pair(request.param)


@pytest.fixture(scope="module")
def small_sd1() -> Pair:
    return Pair(SMALL["sd1"])
