"""Group norm of large channels-last maps: its digits, its layout, and when it is used."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.reference import relative_error
from torch import Tensor

from ldm_core.nn.blocks import GroupNorm
from ldm_core.nn.large_group_norm import is_large


def norm_of(channels: int = 64) -> GroupNorm:
    norm = GroupNorm(32, channels, 1e-6).requires_grad_(False)
    drawn = torch.Generator().manual_seed(0)
    norm.weight.copy_(torch.rand(channels, generator=drawn) + 0.5)
    norm.bias.copy_(torch.randn(channels, generator=drawn))
    return norm


def large_map(mean: float, batch: int = 1) -> Tensor:
    x = torch.randn(batch, 64, 256, 260, generator=torch.Generator().manual_seed(1))
    return (2 * x + mean).contiguous(memory_format=torch.channels_last)


def exact(norm: GroupNorm, x: Tensor) -> Tensor:
    return F.group_norm(x.double(), 32, norm.weight.double(), norm.bias.double(), norm.eps)


@pytest.mark.parametrize("mean", [0.0, 1.0, 100.0])
def test_it_keeps_its_digits_where_pytorchs_does_not(mean: float) -> None:
    norm, x = norm_of(), large_map(mean)
    result = norm(x)
    assert relative_error(result, exact(norm, x).float()) < 3e-6  # measured: at most 8e-7
    assert result.is_contiguous(memory_format=torch.channels_last)
    if mean == 100:  # the reason for it; 6e-3
        assert (
            relative_error(F.group_norm(x, 32, norm.weight, norm.bias, norm.eps), exact(norm, x).float())
            > 1e-4
        )


def test_channels_of_other_means_and_images_of_a_batch() -> None:
    norm = norm_of()
    x = (large_map(0, batch=2) + 50 * torch.arange(64)[:, None, None] / 64).contiguous(
        memory_format=torch.channels_last
    )
    assert relative_error(norm(x), exact(norm, x).float()) < 3e-6
    assert torch.equal(norm(x)[1:], norm(x[1:].contiguous(memory_format=torch.channels_last)))


def test_where_pytorchs_kernel_stays() -> None:
    norm, x = norm_of(), large_map(0)
    assert is_large(norm, x)
    assert not is_large(norm, x.contiguous())
    assert not is_large(norm, x[:, :, :64])
    assert not is_large(norm, x.bfloat16())
    assert not is_large(norm, x.clone().requires_grad_())
    assert not is_large(norm_of().requires_grad_(), x)
    with torch.no_grad():
        assert is_large(norm_of().requires_grad_(), x)
    assert torch.equal(norm(x.contiguous()), F.group_norm(x.contiguous(), 32, norm.weight, norm.bias, 1e-6))
