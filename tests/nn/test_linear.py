"""Linear layers: the backends against float64, which of them a CPU gets, and exchanging them."""

from __future__ import annotations

import pytest
import torch
from support.configs import SMALL
from support.reference import random_model
from torch import Tensor, nn

import ldm_core
from ldm_core.nn import linear, onednn
from ldm_core.nn.linear import BACKENDS, Linear, auto_linear, set_linear


def exact(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The sum over the inputs, in float64."""
    out = torch.einsum("...c,oc->...o", x.double(), weight.double())
    return out if bias is None else out + bias.double()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float64, 1e-14), (torch.float32, 4e-6), (torch.bfloat16, 1.2e-2)]
)
@pytest.mark.parametrize("shape", [(7, 48), (2, 5, 48), (2, 3, 5, 48), (48,), (0, 48)], ids=str)
def test_backends_are_the_product(
    backend: str, dtype: torch.dtype, bound: float, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    x, weight, bias = (
        torch.randn(shape, dtype=dtype),
        torch.randn(80, 48, dtype=dtype),
        torch.randn(80, dtype=dtype),
    )
    for b in (bias, None):
        out, expected = BACKENDS[backend](x, weight, b), exact(x, weight, b)
        assert out.shape == expected.shape
        assert out.dtype == dtype
        if x.numel():
            assert (out - expected).abs().max() < bound * expected.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_do_not_matter(backend: str) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 48, 9).transpose(1, 2), torch.randn(80, 48)
    assert (BACKENDS[backend](x, weight, None) - exact(x, weight, None)).abs().max() < 1e-4


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_has_gradients(backend: str) -> None:
    torch.manual_seed(0)
    layer, plain = Linear(6, 4).double(), nn.Linear(6, 4).double()
    plain.load_state_dict(layer.state_dict())
    set_linear(layer, backend)
    x = torch.randn(3, 6, dtype=torch.float64)
    for network in (layer, plain):
        network(x).square().sum().backward()
    assert layer.weight.grad is not None
    assert plain.weight.grad is not None
    assert (layer.weight.grad - plain.weight.grad).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("dtype", "rows", "float32", "bfloat16", "taken"),
    [
        (torch.float32, 256, True, False, True),
        (torch.float32, 255, True, True, False),
        (torch.float32, 256, False, True, False),
        (torch.bfloat16, 1024, False, True, True),
        (torch.bfloat16, 1023, True, True, False),
        (torch.float64, 2000, True, True, False),
    ],
)
def test_the_automatic_choice(
    dtype: torch.dtype, rows: int, float32: bool, bfloat16: bool, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By dtype, number of rows and the CPU; never for gradients, in a tracer or under autocast."""
    seen: list[torch.Size] = []

    def watched(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        seen.append(x.shape)
        return torch.nn.functional.linear(x, weight, bias)

    monkeypatch.setattr(linear, "multiplies_tiles", lambda: False)
    monkeypatch.setattr(linear, "convolves_float32_faster", lambda: float32)
    monkeypatch.setattr(linear, "convolves_bfloat16_faster", lambda: bfloat16)
    monkeypatch.setattr(linear, "onednn_linear", watched)
    x, weight = torch.zeros(1, rows, 8, dtype=dtype), torch.zeros(8, 8, dtype=dtype)
    auto_linear(x, weight, None)
    assert len(seen) == taken
    auto_linear(x, weight.clone().requires_grad_(), None)
    torch.func.vmap(lambda row: auto_linear(row, weight, None))(x)
    torch.jit.trace(lambda x: auto_linear(x, weight, None), (x,), check_trace=False)
    with torch.autocast("cpu", torch.bfloat16):
        auto_linear(x, weight, None)
    assert len(seen) == taken


@pytest.mark.skipif(not onednn.packs_linear(), reason="this PyTorch has no such operator")
def test_the_automatic_choice_for_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where bfloat16 tiles are multiplied: oneDNN's operator wherever PyTorch would copy a bias."""
    calls: list[torch.Size] = []

    def watched(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        calls.append(x.shape)
        return packed_linear(x, weight, bias)

    packed_linear = onednn.packed_linear
    monkeypatch.setattr(onednn, "packed_linear", watched)
    monkeypatch.setattr(linear, "multiplies_tiles", lambda: True)
    x, weight, bias = torch.randn(2, 5, 8), torch.randn(8, 8), torch.randn(8)
    auto_linear(x, weight, bias)
    auto_linear(x.bfloat16(), weight.bfloat16(), None)
    assert calls == []
    out = auto_linear(x.bfloat16(), weight.bfloat16(), bias.bfloat16())
    assert calls == [x.shape]
    assert (out - exact(x, weight, bias)).abs().max() < 0.2


def test_set_linear_exchanges_every_layer() -> None:
    model = random_model(SMALL["sd1"])
    calls: list[torch.Size] = []

    def counting(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        calls.append(x.shape)
        return torch.nn.functional.linear(x, weight, bias)

    x, context = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 64)
    with torch.no_grad():
        before = model.unet(x, 5, context)
        ldm_core.set_linear(model.unet, counting)
        assert (model.unet(x, 5, context) - before).abs().max() < 1e-5
        assert len(calls) == sum(isinstance(layer, Linear) for layer in model.unet.modules()) > 0
        set_linear(model, "onednn")
        assert (model.unet(x, 5, context) - before).abs().max() < 1e-5 * before.abs().max()
    with pytest.raises(ValueError, match="unknown linear backend 'mkl'; expected one of blas, onednn, auto"):
        set_linear(model, "mkl")
    with pytest.raises(ValueError, match="Linear has no linear layers of this package"):
        set_linear(nn.Linear(2, 2), "auto")
