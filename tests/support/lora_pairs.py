"""What the tests of LoRA files share."""

from __future__ import annotations

import pytest
from support.adapter_files import (
    Pair,
)
from support.configs import SMALL


@pytest.fixture(scope="module", params=["sd1", "sd2"])
def small_pair(request: pytest.FixtureRequest) -> Pair:
    return Pair(SMALL[request.param])


@pytest.fixture(scope="module")
def small_sd1() -> Pair:
    return Pair(SMALL["sd1"])
