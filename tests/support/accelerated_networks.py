"""What the tests of accelerations share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.configs import SMALL
from torch import Tensor

from ldm_core import LatentDiffusion, build
from ldm_core.unet import UNet


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def small_unet(kind: str = "sd1", **changes: Any) -> UNet:
    torch.manual_seed(0)
    return UNet(replace(SMALL[kind].unet, **changes)).eval()


@pytest.fixture(scope="module")
def unet() -> UNet:
    """Three levels of two blocks, as SD1's in small."""
    return small_unet(channel_mult=(1, 2, 2))


X, CONTEXT = draw(2, 4, 16, 16), draw(2, 5, 64, seed=1)


@pytest.fixture
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def small(unet: UNet) -> LatentDiffusion:
    torch.manual_seed(1)
    return replace(build(SMALL["sd1"]), unet=unet)
