"""A LoRA on a model: types, devices, its handle, and the formulas for layers of any size."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from support.adapter_files import (
    KOHYA_TEXT,
    TINY,
    Pair,
    Tensors,
    change,
    kohya,
    kohya_unet,
    largest_error,
    layers,
    loha,
    lokr,
    lora,
    make,
    rank_of,
    same_bits,
    write,
)
from support.examples import examples
from support.lora_models import TOLERANCE, Adapters, whole_change
from support.reference import relative_error

import ldm_core
from ldm_core.adapters.lora import LoraAdapter, apply_lora
from ldm_core.adapters.lora_delta import kind_of
from ldm_core.checkpoint import CheckpointError

# --- types, devices, modes ---


@pytest.mark.parametrize(
    ("dtype", "tolerance", "fused"),
    [
        (torch.bfloat16, 0.06, True),
        (torch.float16, 0.012, False),
        pytest.param(torch.bfloat16, 0.06, False, marks=pytest.mark.slow),
        pytest.param(torch.float16, 0.012, True, marks=pytest.mark.slow),
    ],
)
def test_the_model_may_change_its_type(
    adapters: Adapters, paths: list[Path], dtype: torch.dtype, tolerance: float, fused: bool
) -> None:
    """Tolerances: eight and eleven bits through some 60 layers, as without an adapter."""
    pair = Pair(TINY, references=False)
    on = [apply_lora(pair.model, path, scale=0.5) for path in paths]
    wide = pair.ours()
    if fused:
        for adapter in on:
            adapter.fuse()
    pair.model.to(dtype=dtype)
    ours = pair.ours()
    assert ours[0].dtype == dtype
    assert largest_error(ours, wide) < tolerance
    if not fused:
        pair.model.to(dtype=torch.float32)
        assert pair.ours()[0].dtype == torch.float32
        assert largest_error(pair.ours(), wide) < tolerance
    for adapter in reversed(on):
        adapter.remove()


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float16, 0.015), pytest.param(torch.bfloat16, 0.1, marks=pytest.mark.slow)],
)
def test_fusing_rounds_once_and_restores_16_bit_weights(
    adapters: Adapters, paths: list[Path], dtype: torch.dtype, tolerance: float
) -> None:
    pair = Pair(TINY, references=False)
    pair.model.to(dtype=dtype)
    for parameter in pair.model.unet.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    before, weights = pair.ours(), pair.weights()
    on = [apply_lora(pair.model, path) for path in paths]
    live = pair.ours()
    for adapter in on:
        adapter.fuse()
    assert largest_error(pair.ours(), live) < tolerance
    layer = pair.model.unet.mid.res1.conv1
    assert layer.weight.dtype == dtype
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    exact = weights["unet.mid.res1.conv1.weight"].double()
    for unet, _ in adapters:
        exact = exact + whole_change(unet["mid_block.resnets.0.conv1"], exact)
    half_step = torch.finfo(dtype).eps / 2 * exact.abs()
    error = (layer.weight.double() - exact).abs()
    assert (error <= half_step * 1.001 + 1e-6).all()
    for adapter in on:
        adapter.remove()
    now = pair.weights()
    assert all(torch.equal(now[name], weights[name]) for name in weights)
    assert all(now[name].stride() == weights[name].stride() for name in weights)
    assert same_bits(pair.ours(), before)


def test_fused_cast_and_removed_is_cast(pair: Pair, paths: list[Path]) -> None:
    theirs, ours = Pair(TINY, references=False).model, Pair(TINY, references=False).model
    adapter = apply_lora(ours, paths[0])
    adapter.fuse()
    ours.to(dtype=torch.bfloat16)
    theirs.to(dtype=torch.bfloat16)
    adapter.remove()
    for a, b in zip(ours.unet.parameters(), theirs.unet.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_file_may_go_once_it_is_applied(pair: Pair, adapters: Adapters, tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", kohya(*adapters[0]))
    adapter = apply_lora(pair.model, path)
    path.write_bytes(bytes(path.stat().st_size))
    path.unlink()
    assert largest_error(pair.ours(), pair.merged(*adapters[0])) < TOLERANCE
    adapter.remove()


def test_gradients_after_inference(pair: Pair, paths: list[Path]) -> None:
    """What a call in inference mode leaves behind must not spoil training."""
    with torch.inference_mode():
        adapter = apply_lora(pair.model, paths[2])
        pair.model.unet(pair.x, 3, pair.context)
    x = pair.x.clone().requires_grad_()
    pair.model.unet(x, 3, pair.context).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0
    with torch.inference_mode():
        adapter.fuse()
    again = pair.x.clone().requires_grad_()
    pair.model.unet(again, 3, pair.context).sum().backward()
    assert again.grad is not None
    assert relative_error(again.grad, x.grad) < 1e-4
    adapter.remove()
    pair.model.unet.zero_grad()


@pytest.mark.parametrize("fused", [False, True])
def test_a_copied_model_keeps_its_adapter(pair: Pair, paths: list[Path], fused: bool) -> None:
    adapter = apply_lora(pair.model, paths[1])
    if fused:
        adapter.fuse()
    with torch.no_grad():
        adapted = pair.model.unet(pair.x, 500, pair.context)
        twin = copy.deepcopy(pair.model)
        adapter.remove()
        assert torch.equal(twin.unet(pair.x, 500, pair.context), adapted)


# --- the handle ---


def test_the_handle_tells_what_it_changes(pair: Pair, paths: list[Path], tmp_path: Path) -> None:
    adapter = apply_lora(pair.model, paths[0], 0.8)
    assert len(adapter.layers) == 109 + 18
    assert adapter.layers["unet.down.0.blocks.0.attention.blocks.0.attn1.to_q.weight"] == 4
    assert repr(adapter) == (
        "<0.safetensors: LoRA of rank 4 on 109 layers of the unet and 18 layers of the text_encoder, "
        "live, scale=0.8>"
    )
    adapter.fuse()
    assert "fused" in repr(adapter)
    adapter.remove()
    assert "removed" in repr(adapter)

    tensors = kohya(make({"conv_in": (32, 4, 3, 3)}, lambda s, g: lora(s, g, rank=2))) | {
        f"{kohya_unet('conv_out')}.diff": torch.ones(4, 32, 3, 3),
        f"{kohya_unet('conv_out')}.diff_b": torch.ones(4),
    }
    adapter = apply_lora(pair.model, write(tmp_path / "some.safetensors", tensors), text_encoder_scale=0)
    assert adapter.layers == {
        "unet.conv_in.weight": 2,
        "unet.conv_out.weight": None,
        "unet.conv_out.bias": None,
    }
    assert repr(adapter) == (
        "<some.safetensors: LoRA/full of rank 2 on 2 layers of the unet, live, scale=1, text_encoder_scale=0>"
    )
    adapter.remove()


@pytest.mark.parametrize("fused", [False, True])
def test_biases(pair: Pair, tmp_path: Path, fused: bool) -> None:
    """The bias of the last layer is added to the output as it is; its weight's change is one of zeros."""
    name, bias = kohya_unet("conv_out"), torch.tensor([1.0, -2.0, 0.5, 0.0])
    tensors = {f"{name}.diff": torch.zeros(4, 32, 3, 3), f"{name}.diff_b": bias}
    adapter = apply_lora(pair.model, write(tmp_path / "x.safetensors", tensors), scale=0.5)
    if fused:
        adapter.fuse()
    expected = pair.before[0] + 0.5 * bias[:, None, None]
    assert relative_error(pair.ours()[0], expected) < 1e-6
    adapter.remove()


@pytest.mark.parametrize("scale", [math.nan, math.inf])
def test_scales_are_finite(pair: Pair, paths: list[Path], scale: float) -> None:
    for arguments in ({"scale": scale}, {"text_encoder_scale": scale}):
        with pytest.raises(ValueError, match="an adapter's scale must be finite"):
            apply_lora(pair.model, paths[0], **arguments)
    adapter = apply_lora(pair.model, paths[0])
    with pytest.raises(ValueError, match="an adapter's scale must be finite"):
        adapter.scale = scale
    assert adapter.scale == 1
    adapter.remove()


def test_parts_that_are_no_networks_have_no_layers(pair: Pair, paths: list[Path], tmp_path: Path) -> None:
    """A user's own U-Net takes no adapter for the U-Net, and leaves the text encoder's alone."""
    mine = dataclasses.replace(pair.model, unet=lambda x, t, context: x)
    with pytest.raises(CheckpointError, match=r"without a linear or convolutional layer in the model"):
        apply_lora(mine, paths[0])
    text = make(layers(pair.text_encoder, KOHYA_TEXT))
    adapter = apply_lora(mine, write(tmp_path / "x.safetensors", kohya({}, text)))
    assert isinstance(adapter, LoraAdapter)
    assert relative_error(pair.ours()[1], pair.merged({}, text)[1]) < TOLERANCE
    adapter.remove()


def test_a_picture_with_an_adapter_and_after_it(bundled: ldm_core.LatentDiffusion, tmp_path: Path) -> None:
    layer = bundled.unet.mid.attention.blocks[0].attn2.to_v
    outputs, inputs = layer.weight.shape
    name = kohya_unet("mid_block.attentions.0.transformer_blocks.0.attn2.to_v")
    generator = torch.Generator().manual_seed(0)
    tensors = lora((outputs, inputs), generator)
    path = write(tmp_path / "x.safetensors", {f"{name}.{key}": x for key, x in tensors.items()})
    sampler = ldm_core.Sampler(bundled)

    def draw() -> torch.Tensor:
        return sampler.txt2img("a cat", steps=2, seed=0, output="latent")

    before = draw()
    adapter = apply_lora(bundled, path, scale=10)
    assert relative_error(draw(), before) > 0.001
    adapter.remove()
    assert torch.equal(draw(), before)


# --- the formulas, for layers of any size ---


@st.composite
def one_layer(draw: st.DrawFn) -> tuple[tuple[int, ...], Tensors]:
    """(shape of a weight, tensors of any kind of change of it)."""
    sizes = st.sampled_from([1, 2, 3, 4, 6, 9])
    kernel = draw(st.sampled_from([(), (1, 1), (3, 3), (1, 3)]))
    shape = (draw(sizes), draw(sizes), *kernel)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    rank, core = draw(st.integers(1, 5)), bool(kernel) and draw(st.booleans())
    kind = draw(st.sampled_from(["lora", "loha", "lokr", "full"]))
    if kind == "lora":
        return shape, lora(shape, generator, rank=rank, core=core)
    if kind == "loha":
        return shape, loha(shape, generator, rank=rank, core=core)
    if kind == "full":
        return shape, {"diff": torch.randn(shape, generator=generator)}
    first = draw(st.sampled_from(["whole", "product"]))
    second = draw(st.sampled_from(["whole", "product", "core"]))
    return shape, lokr(shape, generator, rank=rank, first=first, second=second)


@examples(200)
@given(layer=one_layer(), stride=st.integers(1, 2))
def test_each_formula_and_what_it_does_to_an_input(layer: Any, stride: int) -> None:
    shape, tensors = layer
    tensors = {name.removesuffix(".weight"): x for name, x in tensors.items()}
    kind = kind_of(set(tensors))
    factors, rank = kind.fit(tensors, shape)
    assert rank == rank_of({f"{name}.weight" if "lora" in name else name: x for name, x in tensors.items()})
    delta = kind(factors, shape, rank)
    expected = torch.from_numpy(change(tensors, shape)).float()
    assert delta.weight().shape == shape
    assert torch.allclose(delta.weight(), expected, rtol=1e-5, atol=1e-5)

    x = torch.randn(2, shape[1], 5, 6)
    chained = x
    for place, weight in enumerate(delta.chain()):
        if len(shape) == 2:
            chained = F.linear(chained if place else x.movedim(1, -1), weight)
        else:
            chained = F.conv2d(chained, weight, stride=stride if place == delta.spatial else 1)
    direct = F.linear(x.movedim(1, -1), expected) if len(shape) == 2 else F.conv2d(x, expected, stride=stride)
    assert chained.shape == direct.shape
    assert torch.allclose(chained, direct, rtol=1e-4, atol=1e-4)
