"""Weights that are stored a second time: they give the layer's result, follow its weights, and can be had."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.configs import SMALL
from support.reference import random_model
from torch import Tensor, nn

import ldm_core
from ldm_core.nn import convolution, onednn, prepared
from ldm_core.nn.blocks import gated_projection
from ldm_core.nn.convolution import Conv3x3, set_convolution
from ldm_core.nn.linear import Linear
from ldm_core.nn.parts import equal_parts
from ldm_core.nn.prepared import PreparedConvolution, PreparedGeglu, PreparedLinear
from ldm_core.unet.transformer import FeedForward

needs_onednn = pytest.mark.skipif(
    not (onednn.packs_linear() and onednn.packs_convolution()), reason="this PyTorch has no oneDNN operators"
)
EXACT = 1.1e-5  # of the largest value, against float64, in float32
ROUNDED = 1.2e-2  # the same in bfloat16, which has 8 bits


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def largest_error(out: Tensor, expected: Tensor) -> float:
    return ((out.double() - expected).abs().max() / expected.abs().max()).item()


def linear() -> tuple[nn.Module, Tensor]:
    layer = Linear(48, 80)
    layer.linear = PreparedLinear()
    return layer, torch.randn(2, 30, 48)


def feed_forward() -> tuple[nn.Module, Tensor]:
    layer = FeedForward(16)
    layer.gated = PreparedGeglu()
    return layer, torch.randn(2, 30, 16)


def convolved_by_winograd() -> tuple[nn.Module, Tensor]:
    layer = Conv3x3(192, 192)
    layer.convolution = PreparedConvolution()
    return layer, torch.randn(1, 192, 16, 16)


def convolved_directly() -> tuple[nn.Module, Tensor]:
    layer = Conv3x3(192, 192)
    layer.convolution = PreparedConvolution()
    return layer, torch.randn(1, 192, 6, 6).contiguous(memory_format=torch.channels_last)


LAYERS = [linear, feed_forward, convolved_by_winograd, convolved_directly]


def exact(layer: nn.Module, x: Tensor) -> Tensor:
    plain = copy.deepcopy(layer).double()
    if isinstance(plain, Linear):
        return F.linear(x.double(), plain.weight, plain.bias)
    if isinstance(plain, Conv3x3):
        return F.conv2d(x.double(), plain.weight, plain.bias, padding=1)
    value, gate = plain.proj_in(x.double()).chunk(2, dim=-1)
    return plain.proj_out(value * F.gelu(gate))


@needs_onednn
@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, EXACT), (torch.bfloat16, ROUNDED)])
def test_a_prepared_layer_gives_the_result(
    make: Callable[[], tuple[nn.Module, Tensor]], dtype: torch.dtype, bound: float
) -> None:
    layer, x = make()
    layer, x = layer.to(dtype), x.to(dtype)
    assert largest_error(layer(x), exact(layer, x)) < bound
    more = torch.cat([x, x])  # another number of rows: the weights are packed for these
    assert largest_error(layer(more), exact(layer, more)) < bound
    assert layer(x[:0]).shape == (0, *layer(x).shape[1:])


@needs_onednn
@pytest.mark.parametrize("make", LAYERS)
def test_stored_weights_follow_the_layers(make: Callable[[], tuple[nn.Module, Tensor]]) -> None:
    layer, x = make()
    largest = next(p for p in layer.parameters() if p.ndim > 1)

    def follows() -> bool:
        return largest_error(layer(x), exact(layer, x)) < EXACT

    assert follows()
    largest.mul_(2)
    assert follows(), "a write that PyTorch counts"
    largest.data.copy_(torch.randn_like(largest))
    assert follows(), "a write that it does not count"
    for _ in range(3):  # as adapters are fused and removed: other memory, perhaps that of the one before
        largest.data = torch.randn_like(largest)
        assert follows()
    layer.load_state_dict({name: torch.randn_like(value) for name, value in layer.state_dict().items()})
    assert follows()
    layer.load_state_dict(
        {name: torch.randn_like(value) for name, value in layer.state_dict().items()}, assign=True
    )
    assert follows()
    with torch.inference_mode():
        assert follows()
    other = copy.deepcopy(layer)
    next(p for p in other.parameters() if p.ndim > 1).mul_(3)
    assert largest_error(other(x), exact(other, x)) < EXACT
    assert follows(), "copies do not share what is stored"


@needs_onednn
@pytest.mark.parametrize("make", LAYERS)
def test_a_prepared_layer_is_saved_as_its_weights(make: Callable[[], tuple[nn.Module, Tensor]]) -> None:
    layer, x = make()
    out = layer(x)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), out)
    assert file.tell() < 1.2 * sum(p.nbytes for p in layer.parameters()) + 10_000


@needs_onednn
@pytest.mark.parametrize("make", LAYERS)
def test_plain_operators_are_used_for_gradients_and_tracers(
    make: Callable[[], tuple[nn.Module, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = make()
    out = layer(x)

    def refuse(*args: object) -> None:
        raise AssertionError("this operator has no gradient and cannot be recorded")

    for name in ("packed_linear", "packed_convolution"):
        monkeypatch.setattr(onednn, name, refuse)
    monkeypatch.setattr(prepared, "winograd_conv2d", refuse)
    with torch.enable_grad():
        layer(x).sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
    traced = torch.jit.trace(layer, (x,), check_trace=False)
    exported = torch.export.export(layer, (x,)).module()
    recorded = torch.fx.experimental.proxy_tensor.make_fx(layer)(x)
    for other in (traced, exported, recorded):
        assert largest_error(other(x), out.double()) < EXACT
    batched = torch.func.vmap(layer)(x[None])[0]
    assert largest_error(batched, out.double()) < EXACT
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


def test_optimizing_keeps_a_model_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (convolution, prepared):
        monkeypatch.setattr(module, "MIN_CHANNELS", 64)
    model = random_model(SMALL["sd1"])
    options = {"steps": 2, "seed": 0, "output": "latent"}
    plain = ldm_core.Sampler(model).txt2img("a cat", **options)
    assert str(ldm_core.optimization(model)) == "no layer stores its weights a second time"
    assert ldm_core.optimize(model) is model
    report = ldm_core.optimization(model)
    convolutions = [m for m in model.unet.modules() if isinstance(m, Conv3x3)]
    stored = [m for m in convolutions if min(m.weight.shape[:2]) >= 64]
    assert report.convolutions == len(stored) > 0
    assert all(isinstance(m.convolution, PreparedConvolution) for m in stored)
    if onednn.packs_linear():
        assert report.feed_forwards == sum(isinstance(m, FeedForward) for m in model.unet.modules())
        assert report.linears > report.feed_forwards
    assert f"{report.convolutions} convolutions store their weights a second time" in str(report)
    fast = ldm_core.Sampler(model).txt2img("a cat", **options)
    assert largest_error(fast, plain.double()) < EXACT
    assert not torch.equal(fast, plain)
    assert not any(isinstance(m, Conv3x3) and isinstance(m.convolution, PreparedConvolution)
                   for m in model.autoencoder.modules())  # fmt: skip

    half = report.nbytes // 2
    ldm_core.optimize(model, extra_bytes=half)
    assert 0 < ldm_core.optimization(model).nbytes <= half
    ldm_core.optimize(model, extra_bytes=0)
    assert ldm_core.optimization(model) == prepared_nothing()
    assert torch.equal(ldm_core.Sampler(model).txt2img("a cat", **options), plain)
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        ldm_core.optimize(model, extra_bytes=-1)
    with pytest.raises(ValueError, match="no linear layers and 3x3 convolutions of this package"):
        ldm_core.optimize(nn.Linear(2, 2))
    assert ldm_core.optimization(ldm_core.optimize(model.unet.double())) == prepared_nothing()


def prepared_nothing() -> ldm_core.nn.optimization.Optimization:
    return ldm_core.nn.optimization.Optimization(linears=0, feed_forwards=0, convolutions=0, nbytes=0)


@pytest.mark.slow
def test_f2_in_bfloat16_is_taken_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (convolution, prepared):
        monkeypatch.setattr(module, "MIN_CHANNELS", 64)
    unet = random_model(SMALL["sd1"]).unet.bfloat16()
    x, context = torch.randn(1, 4, 8, 8).bfloat16(), torch.randn(1, 77, 64).bfloat16()
    exact = copy.deepcopy(unet).double()(x.double(), 5, context.double())
    plain = rms(unet(x, 5, context), exact)
    exactly, approximately = (
        (rms(ldm_core.optimize(unet, approximate=asked)(x, 5, context), exact), ldm_core.optimization(unet))
        for asked in (False, True)
    )
    assert exactly[0] < 1.3 * plain
    assert plain < approximately[0] < 3 * plain
    assert approximately[1].nbytes > exactly[1].nbytes
    ldm_core.optimize(unet, extra_bytes=0)
    assert rms(unet(x, 5, context), exact) == plain


def rms(out: Tensor, expected: Tensor) -> float:
    return ((out - expected).square().mean() / expected.square().mean()).sqrt().item()


def test_without_onednns_operators_the_plain_ones_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "packs_linear", lambda: False)
    monkeypatch.setattr(onednn, "packs_convolution", lambda: False)
    model = random_model(SMALL["sd1"])
    assert ldm_core.optimization(ldm_core.optimize(model)).linears == 0
    layer, x = convolved_directly()
    assert largest_error(layer(x), exact(layer, x)) < EXACT


def test_a_fused_adapter_is_seen_through_stored_weights(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model = random_model(SMALL["sd1"])
    name = "lora_unet_down_blocks_0_resnets_0_conv1"
    layer = model.unet.down[0].blocks[0].res.conv1
    tensors = {
        f"{name}.lora_down.weight": torch.randn(2, layer.in_channels, 3, 3),
        f"{name}.lora_up.weight": torch.randn(layer.out_channels, 2, 1, 1),
        f"{name}.alpha": torch.tensor(2.0),
    }
    save_file(tensors, tmp_path / "adapter.safetensors")
    x = torch.randn(1, layer.in_channels, 40, 40)
    layer.convolution = PreparedConvolution()
    plain = layer(x)
    adapter = ldm_core.apply_lora(model, tmp_path / "adapter.safetensors", 1.0)
    adapter.fuse()
    assert largest_error(layer(x), exact(layer, x)) < EXACT
    assert (layer(x) - plain).abs().max() > 0.1
    adapter.remove()
    assert torch.equal(layer(x), plain)


@needs_onednn
def test_a_hook_on_a_projection_is_seen_by_a_prepared_feed_forward() -> None:
    layer, x = feed_forward()
    layer.proj_in.register_forward_hook(lambda module, args, out: out * 2)  # as adapters that are not fused
    plain = copy.deepcopy(layer)
    plain.gated = gated_projection
    assert torch.equal(layer(x), plain(x))


@pytest.mark.parametrize(
    ("rows", "most", "expected"),
    [(8192, 3276, 2048), (100, 200, 100), (12, 5, 4), (7, 5, 4), (0, 5, 1), (5, 0, 1)],
)
def test_rows_are_split_into_equal_parts(rows: int, most: int, expected: int) -> None:
    assert equal_parts(rows, most) == expected
    assert equal_parts(rows, most) <= max(1, most)


def test_setting_a_backend_reverts_it() -> None:
    layer, _ = convolved_by_winograd()
    set_convolution(layer, "auto")
    assert layer.convolution is convolution.auto_convolution
