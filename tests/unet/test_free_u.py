"""FreeU: its two operations, and where in a U-Net they take place (Si et al. 2023)."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.configs import SMALL
from torch import Tensor, nn

from ldm_core import free_u
from ldm_core.unet import UNet
from ldm_core.unet.free_u import amplified, damped

pytestmark = pytest.mark.usefixtures("no_gradients")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def unet() -> UNet:
    torch.manual_seed(0)
    return UNet(SMALL["sd1"].unet)


X, CONTEXT = draw(2, 4, 16, 16), draw(2, 3, 64, seed=1)


@given(st.integers(1, 9), st.integers(1, 9), st.floats(0, 2))
def test_damping_removes_a_part_of_the_lowest_frequencies(height: int, width: int, factor: float) -> None:
    """The centre of the shifted spectrum holds the frequencies -1 and 0 of each axis."""
    skip = draw(1, 2, height, width)
    spectrum = torch.fft.fft2(skip)
    rows = {0, height - 1} if height > 1 else {0}
    columns = {0, width - 1} if width > 1 else {0}
    for i in rows:
        for j in columns:
            spectrum[..., i, j] *= factor
    torch.testing.assert_close(damped(skip, factor), torch.fft.ifft2(spectrum).real, atol=1e-5, rtol=1e-4)


def test_damping_agrees_with_diffusers() -> None:
    from diffusers.utils.torch_utils import fourier_filter

    skip = draw(2, 4, 16, 8)
    torch.testing.assert_close(damped(skip, 0.2), fourier_filter(skip, threshold=1, scale=0.2))


def test_half_of_the_channels_are_amplified() -> None:
    h = draw(2, 6, 4, 5)
    assert torch.equal(amplified(h, 1.5), torch.cat([h[:, :3] * 1.5, h[:, 3:]], dim=1))


def test_the_adaptive_factor_follows_the_mean_of_the_channels() -> None:
    h = draw(2, 6, 4, 5)
    mean = h.mean(dim=1)
    for k, image in enumerate(amplified(h, 1.5, adaptive=True)):
        m = (mean[k] - mean[k].min()) / (mean[k].max() - mean[k].min())
        torch.testing.assert_close(image, torch.cat([h[k, :3] * (1 + 0.5 * m), h[k, 3:]]))
    assert torch.isfinite(amplified(torch.ones(1, 2, 3, 3), 1.5, adaptive=True)).all()


def _keep_input(seen: list[Tensor], module: nn.Module, args: tuple[Any, ...]) -> None:
    seen.append(args[0])


def changed(unet: UNet, **options: Any) -> list[tuple[int, int]]:
    """The number of each block of the upward path whose input changes, and which pair of factors it has."""
    inputs: list[list[Tensor]] = []
    blocks: list[nn.Module] = [block for level in unet.up for block in level.blocks]
    for b in ((1, 1), (2, 1), (1, 2)):
        with free_u(unet, b, (1, 1), **options):
            seen: list[Tensor] = []
            keep = partial(_keep_input, seen)
            handles = [block.res.register_forward_pre_hook(keep) for block in blocks]
            unet(X, 3, CONTEXT)
            for handle in handles:
                handle.remove()
        inputs.append(seen)
    channels = [one.shape[1] for one in inputs[0]]
    assert len(channels) == 12
    found = []
    for which in (1, 2):
        hooked = [i for i, block in enumerate(blocks) if _hooked(unet, block, which - 1, options)]
        found += [(i, which) for i in hooked]
        first = hooked[0]
        assert torch.equal(inputs[which][first][:, 0], 2 * inputs[0][first][:, 0])
        assert torch.equal(inputs[which][first][:, -1], inputs[0][first][:, -1])
    return sorted(found)


def _hooked(unet: UNet, block: nn.Module, which: int, options: Any) -> bool:
    pair = (2.0, 1.0) if which == 0 else (1.0, 2.0)
    with free_u(unet, pair, (1, 1), **options):
        return bool(block._forward_pre_hooks)


def test_the_blocks_of_the_original(unet: UNet) -> None:
    """Output blocks 0 to 6 have h of 4 * model_channels, and 7 to 9 of 2 * model_channels."""
    assert changed(unet) == [*((i, 1) for i in range(7)), *((i, 2) for i in range(7, 10))]


def test_the_blocks_of_diffusers(unet: UNet) -> None:
    """The two deepest levels."""
    expected = [*((i, 1) for i in range(3)), *((i, 2) for i in range(3, 6))]
    assert changed(unet, placement="diffusers") == expected


def test_factors_of_1_and_removal_are_plain_to_the_bit(unet: UNet) -> None:
    plain = unet(X, 3, CONTEXT)
    with free_u(unet, (1, 1), (1, 1)):
        assert torch.equal(unet(X, 3, CONTEXT), plain)
    with free_u(unet):
        assert not torch.equal(unet(X, 3, CONTEXT), plain)
    assert torch.equal(unet(X, 3, CONTEXT), plain)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"b": (1.0, float("nan"))}, "b and s must be pairs of finite numbers"),
        ({"s": (1.0,)}, "b and s must be pairs of finite numbers"),
        ({"placement": "a1111"}, "placement must be 'original' or 'diffusers', not 'a1111'"),
    ],
)
def test_bad_arguments(unet: UNet, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message), free_u(unet, **options):
        pass


def test_another_network() -> None:
    with (
        pytest.raises(ValueError, match="Linear is no U-Net of this package, which FreeU needs"),
        free_u(nn.Linear(1, 1)),
    ):
        pass
