"""What the tests of trained LoRAs share."""

from __future__ import annotations

from typing import Any

import pytest
from support.adapter_files import TINY, Pair
from support.configs import TINY as KINDS

from ldm_core.adapters.lora import adaptable_layers

BOTH = ("unet", "text_encoder")


@pytest.fixture(scope="module", params=["sd1", "sd2"])
def pair(request: pytest.FixtureRequest) -> Pair:
    """SD1's projections are convolutions in files, SD2's linear; SD2 leaves its last text block out."""
    return Pair(TINY if request.param == "sd1" else KINDS["sd2"])


@pytest.fixture(scope="module")
def sd1() -> Pair:
    return Pair(TINY)


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(request: pytest.FixtureRequest) -> Any:
    yield
    for name in {"pair", "sd1"} & set(request.fixturenames):
        model = request.getfixturevalue(name).model
        assert not any(layer._forward_hooks for layer in adaptable_layers(model).values())


NAMINGS = ["kohya", "diffusers", "peft"]
