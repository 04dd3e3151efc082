"""The networks inside PyTorch's function transforms: vmap against a loop, jvp against finite differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.configs import TINY
from torch import Tensor, nn
from torch.autograd import forward_ad

from ldm_core.autoencoder import AutoencoderKL
from ldm_core.nn.blocks import ResBlock
from ldm_core.nn.convolution import set_convolution
from ldm_core.unet import UNet
from ldm_core.unet.deep_cache import DeepCache

# PyTorch's fused attention has no batching rule: vmap computes it row by row, and says so.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
KINDS = ["sd1", "sd2-unclip", "sd2-depth"]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def network(kind: str) -> tuple[UNet, dict[str, Tensor]]:
    """A small U-Net in float64, and arguments for three calls of two rows each, (3, 2, ...)."""
    config = TINY[kind].unet
    torch.manual_seed(0)
    unet = UNet(config).double()
    arguments = {"x": draw(3, 2, config.in_channels, 8, 8), "context": draw(3, 2, 5, config.context_dim)}
    if config.adm_in_channels:
        arguments["y"] = draw(3, 2, config.adm_in_channels)
    return unet, arguments


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).detach().abs().max() / expected.detach().abs().max())


def slope(function: Callable[[Tensor], Tensor], x: Tensor, tangent: Tensor) -> Tensor:
    """The directional derivative by central differences of fourth order: exact to about 1e-11."""
    h = 1e-3
    with torch.no_grad():
        near = function(x + h * tangent) - function(x - h * tangent)
        far = function(x + 2 * h * tangent) - function(x - 2 * h * tangent)
    return (8 * near - far) / (12 * h)


@pytest.mark.parametrize("kind", KINDS)
def test_vmap_of_the_unet_is_a_loop(kind: str) -> None:
    unet, arguments = network(kind)

    def call(values: dict[str, Tensor]) -> Tensor:
        return unet(t=500, **values)

    together = torch.func.vmap(call)(arguments)
    loop = [call({name: value[k] for name, value in arguments.items()}) for k in range(3)]
    assert error(together, torch.stack(loop)) < 1e-12


@pytest.mark.one_in(3)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", KINDS)
def test_jvp_of_the_unet_is_its_slope(kind: str, layout: Any) -> None:
    unet, arguments = network(kind)
    unet.to(memory_format=layout)
    first = {name: value[0] for name, value in arguments.items()}

    def call(x: Tensor) -> Tensor:
        return unet(t=500, **first | {"x": x})

    x, tangent = first["x"], draw(*first["x"].shape, seed=1)
    out, derivative = torch.func.jvp(call, (x,), (tangent,))
    assert error(out, call(x)) < 1e-12
    assert error(derivative, slope(call, x, tangent)) < 1e-8
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(call(forward_ad.make_dual(x, tangent)))
    assert error(dual.tangent, derivative) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_grad_of_the_unet_is_autograds(kind: str) -> None:
    unet, arguments = network(kind)
    first = {name: value[0] for name, value in arguments.items()}

    def loss(x: Tensor) -> Tensor:
        return unet(t=500, **first | {"x": x}).square().mean()

    x = first["x"].clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(x), x)
    assert error(torch.func.grad(loss)(first["x"]), expected) < 1e-12
    per_row = torch.func.vmap(torch.func.grad(loss))(arguments["x"])
    assert error(per_row[0], expected) < 1e-12


def test_vmap_over_weights_is_an_ensemble() -> None:
    unet, arguments = network("sd1")
    torch.manual_seed(1)
    members = [unet, UNet(unet.config).double()]
    parameters, buffers = torch.func.stack_module_state(members)  # type: ignore[arg-type]
    x, context = arguments["x"][0], arguments["context"][0]

    def call(parameters: Any, buffers: Any) -> Tensor:
        return torch.func.functional_call(unet, (parameters, buffers), (x, 500, context))

    together = torch.func.vmap(call)(parameters, buffers)
    assert error(together, torch.stack([member(x, 500, context) for member in members])) < 1e-12


def test_deep_cache_keeps_nothing_of_a_transform() -> None:
    unet, arguments = network("sd1")
    cached, context = DeepCache(unet), arguments["context"][0]
    with torch.no_grad(), forward_ad.dual_level():
        cached(arguments["x"][0], 500, context)
        assert cached._walks == []
    with torch.no_grad():
        cached(arguments["x"][0], 500, context)
        assert len(cached._walks) == 1


@torch.no_grad()
@pytest.mark.parametrize("backend", ["auto", "direct"])
def test_fast_convolutions_are_not_taken_inside_a_transform(backend: str) -> None:
    # 40 x 40 pixels of 192 channels are Winograd's outside, whose buffers a transform cannot use.
    torch.manual_seed(0)
    block = ResBlock(192, 192)
    set_convolution(block, backend)
    x, tangent = draw(2, 1, 192, 40, 40, dtype=torch.float32), draw(1, 192, 40, 40, dtype=torch.float32)
    plain = torch.stack([block(row) for row in x])
    assert error(torch.func.vmap(block)(x), plain) < 1e-5
    out, derivative = torch.func.jvp(block, (x[0],), (tangent,))
    assert error(out, plain[0]) < 1e-5
    assert error(derivative.double(), slope(block.double(), x[0].double(), tangent.double())) < 1e-5
    set_convolution(block.float(), "winograd")
    with pytest.raises(ValueError, match="'winograd' has no gradients"):
        torch.func.jvp(block, (x[0],), (tangent,))


@torch.no_grad()
def test_vmap_and_jvp_of_the_autoencoder() -> None:
    torch.manual_seed(0)
    autoencoder: nn.Module = AutoencoderKL(TINY["sd1"].autoencoder).double()
    z, tangent = draw(2, 1, 4, 8, 8), draw(1, 4, 8, 8, seed=1)
    loop = torch.stack([autoencoder(row) for row in z])
    assert error(torch.func.vmap(autoencoder)(z), loop) < 1e-12
    out, derivative = torch.func.jvp(autoencoder, (z[0],), (tangent,))
    assert error(out, loop[0]) < 1e-12
    assert error(derivative, slope(autoencoder, z[0], tangent)) < 1e-8
