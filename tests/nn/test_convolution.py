"""3x3 convolutions: Winograd's against the definition in float64, who uses it when."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from support.configs import TINY
from support.examples import examples
from torch import Tensor, nn

import ldm_core
from ldm_core.nn import convolution, winograd
from ldm_core.nn.convolution import Conv3x3, convolutions, set_convolution
from ldm_core.nn.winograd import F2, F4, Form, transform_weight, winograd_conv2d


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def exact(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    bias = None if bias is None else bias.double()
    return F.conv2d(x.double(), weight.double(), bias, padding=1)


# Of the largest value, against float64: this package's reached 3.3e-6, PyTorch's own 3.4e-6.
EXACT = 1.1e-5


def largest_error(out: Tensor, expected: Tensor) -> float:
    return ((out - expected).abs().max() / expected.abs().max()).item()


def case(batch: int, channels: int, outputs: int, h: int, w: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    weight = torch.randn(outputs, channels, 3, 3) / (3 * channels**0.5)
    return torch.randn(batch, channels, h, w), weight, torch.randn(outputs)


@examples(60)
@given(
    st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 14), st.integers(1, 14), st.data()
)
def test_it_is_the_convolution_for_any_size(
    batch: int, channels: int, outputs: int, h: int, w: int, data: st.DataObject
) -> None:
    x, weight, bias = (tensor.double() for tensor in case(batch, channels, outputs, h, w))
    if data.draw(st.booleans()):
        x = x.contiguous(memory_format=torch.channels_last)
    if data.draw(st.booleans()):
        weight = weight.contiguous(memory_format=torch.channels_last)
    with_bias = bias if data.draw(st.booleans()) else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "WORKSPACE_BYTES", data.draw(st.sampled_from([1, 20_000, 2**25])))
        form = data.draw(st.sampled_from([F4, F2]))
        out = winograd_conv2d(x, transform_weight(weight, form), with_bias, form)
    expected = exact(x, weight, with_bias)
    assert out.shape == expected.shape
    assert (out - expected).abs().max() < 1e-12


def test_it_is_as_exact_as_pytorchs() -> None:
    """Against float64, at SD1's widths."""
    for channels, outputs, size in [(320, 320, 32), (960, 320, 16), (1280, 1280, 8)]:
        x, weight, bias = case(1, channels, outputs, size, size)
        error = largest_error(winograd_conv2d(x, transform_weight(weight), bias), exact(x, weight, bias))
        assert error < EXACT


@pytest.mark.parametrize("form", [F4, F2])
def test_one_axis_is_the_polynomial_product(form: Form) -> None:
    """A^T ((G g) * (B^T d)) is the correlation of a window's values with 3, equation 6 of the paper."""
    torch.manual_seed(0)
    d, g = torch.randn(form.window, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    values = torch.empty_like(d)
    form.evaluate(list(d), values)
    out = torch.empty(form.tile, 5, dtype=torch.float64)
    form.interpolate(values * (winograd.kernel_transform(form.points) @ g), list(out))
    expected = torch.stack([(d[i : i + 3] * g).sum(0) for i in range(form.tile)])
    assert (out - expected).abs().max() < 1e-13


def test_f2_loses_little_in_bfloat16() -> None:
    """Root mean square errors against float64: 1.7e-3 for PyTorch's, 6e-3 for F(2x2), 1.6e-2 for F(4x4)."""
    x, weight, bias = (tensor.bfloat16() for tensor in case(1, 320, 320, 16, 16))
    expected = exact(x, weight, bias)

    def rms(out: Tensor) -> float:
        return ((out - expected).square().mean() / expected.square().mean()).sqrt().item()

    f2, f4 = (rms(winograd_conv2d(x, transform_weight(weight, f), bias, f)) for f in (F2, F4))
    assert rms(F.conv2d(x, weight, bias, padding=1)) < f2 < 9e-3 < f4


def test_large_float32_maps_take_it_and_others_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[torch.Size] = []

    def watched(x: Tensor, transformed: Tensor, bias: Tensor | None = None) -> Tensor:
        taken.append(x.shape)
        return winograd_conv2d(x, transformed, bias)

    monkeypatch.setattr(convolution, "winograd_conv2d", watched)
    layer = Conv3x3(192, 192)
    large, small, narrow = torch.randn(1, 192, 40, 40), torch.randn(1, 192, 8, 8), torch.randn(1, 32, 40, 40)
    assert largest_error(layer(large), exact(large, layer.weight, layer.bias)) < EXACT
    assert len(taken) == 1
    layer(small)
    Conv3x3(32, 32)(narrow)
    layer.double()(large.double())
    layer.bfloat16()(large[:, :, :4].bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.float()(large).dtype == torch.bfloat16
    assert len(taken) == 1
    with torch.enable_grad():
        layer.float()(large).sum().backward()
    assert len(taken) == 1
    assert layer.weight.grad is not None


def test_asked_for_by_name_it_says_where_it_cannot_run() -> None:
    layer = Conv3x3(4, 4)
    set_convolution(layer, "winograd")
    x = torch.randn(1, 4, 8, 8)
    assert largest_error(layer(x), exact(x, layer.weight, layer.bias)) < EXACT
    with torch.autocast("cpu", torch.bfloat16):
        assert largest_error(layer(x), exact(x, layer.weight, layer.bias)) < EXACT
    with torch.enable_grad(), pytest.raises(ValueError, match="no gradients"):
        layer(x)
    with pytest.raises(ValueError, match=r"needs float32 or float64, got torch\.bfloat16"):
        layer.bfloat16()(x.bfloat16())
    with pytest.raises(ValueError, match="unknown convolution backend 'fft'; expected one of direct"):
        set_convolution(layer, "fft")
    with pytest.raises(ValueError, match="no 3x3 convolutions"):
        set_convolution(nn.Linear(2, 2), "auto")
    with pytest.raises(ValueError, match="a torch module or a dataclass of them, not int"):
        set_convolution(3, "auto")


@pytest.mark.parametrize(("side", "transposed"), [(4, True), (40, False)])
def test_the_smaller_of_map_and_weights_is_copied(
    side: int, transposed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch wants both in one layout. Where the weights are the larger, the map gives way."""
    seen: list[bool] = []
    direct = convolution.direct_convolution

    def noted(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        seen.append(x.is_contiguous())
        return direct(x, weight, bias)

    monkeypatch.setattr(convolution, "direct_convolution", noted)
    x, weight, bias = case(2, 96, 64, side, side)
    x = x.contiguous(memory_format=torch.channels_last)
    out = convolution.auto_convolution(x, weight, bias)
    assert seen == [transposed]
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert largest_error(out, exact(x, weight, bias)) < 5e-6
    in_its_layout = weight.contiguous(memory_format=torch.channels_last)
    assert largest_error(convolution.auto_convolution(x, in_its_layout, bias), out) < 5e-6
    assert seen == [transposed, False], "nothing needs to be copied"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_model_that_is_cast_is_laid_out_as_one_that_is_loaded(dtype: torch.dtype) -> None:
    """Convolutions of 16-bit types channels-last, and back."""
    model = ldm_core.build(TINY["sd1"])
    for argument, layout in (
        (dtype, torch.channels_last),
        ("cpu", torch.channels_last),
        (torch.float32, torch.contiguous_format),
    ):
        weights = [layer.weight for layer in convolutions(model.to(argument))]
        assert all(weight.is_contiguous(memory_format=layout) for weight in weights)
    model.unet.to(memory_format=torch.channels_last)  # type: ignore[attr-defined]
    assert model.to("cpu").unet.mid.res1.conv1.weight.is_contiguous(  # type: ignore[attr-defined]
        memory_format=torch.channels_last
    ), "what a caller chose stays"
