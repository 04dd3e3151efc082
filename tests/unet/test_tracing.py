"""Tracing and exporting after an ordinary call: the context stays an input, nothing is baked in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.configs import TINY
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ldm_core.unet import UNet


@pytest.fixture(scope="module")
def unet() -> UNet:
    torch.manual_seed(0)
    return UNet(TINY["sd1"].unet).eval().requires_grad_(False)


def inputs(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    x, context = (torch.randn(*shape, generator=drawn) for shape in ((1, 4, 8, 8), (1, 5, 64)))
    return x, torch.tensor([7]), context


def by_jit(unet: UNet, arguments: tuple[Tensor, ...]) -> Any:
    return torch.jit.trace(unet, arguments)


def by_fx(unet: UNet, arguments: tuple[Tensor, ...]) -> Any:
    return make_fx(lambda *args: unet(*args))(*arguments)


def by_export(unet: UNet, arguments: tuple[Tensor, ...]) -> Any:
    return torch.export.export(unet, arguments).module()


@pytest.mark.slow  # imports PyTorch's compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("trace", [by_jit, by_fx, by_export])
@torch.no_grad()
def test_a_traced_network_sees_its_context(unet: UNet, trace: Any) -> None:
    first, other = inputs(0), inputs(1)
    unet(*first)
    traced = trace(unet, first)
    for arguments in (first, other):
        torch.testing.assert_close(traced(*arguments), unet(*arguments), rtol=1e-4, atol=1e-4)


@pytest.mark.slow  # imports PyTorch's compiler
@torch.no_grad()
def test_a_compiled_network_sees_its_context(unet: UNet) -> None:
    compiled = torch.compile(unet, backend="eager", fullgraph=True)
    for arguments in (inputs(0), inputs(1)):
        unet(*arguments)
        torch.testing.assert_close(compiled(*arguments), unet(*arguments), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_context_that_changes_is_seen_between_calls(unet: UNet) -> None:
    """By writing to memory that it shares with NumPy, which no version counter counts."""
    x, t, context = inputs(0)
    before = unet(x, t, context)
    context.numpy()[:] += 1
    assert not torch.equal(unet(x, t, context), before)
