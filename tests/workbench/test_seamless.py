"""Circular padding: the networks commute with circular shifts, so that there is no border."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.configs import TINY
from support.lora_own import write_unet_lora
from support.random_models import random_model

import ldm_core
from ldm_core.circular_padding import is_seamless
from ldm_core.high_resolution import enlarged
from ldm_core.nn.convolution import BACKENDS, Conv3x3

SHIFT = (2, 4)  # latent pixels, multiples of the tiny U-Net's factor of 2


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.fixture
def model() -> ldm_core.LatentDiffusion:
    return random_model(TINY["sd1"])


def predictions(model: ldm_core.LatentDiffusion) -> dict[str, Any]:
    """The functions that are seamless, of a latent, and their pixels per latent."""
    context = torch.randn(1, 77, 64, generator=torch.Generator().manual_seed(1))
    return {
        "unet": (lambda x: model.unet(x, 500, context), 1),
        "decoder": (model.decode_latent, model.config.autoencoder.downsampling),
    }


@pytest.mark.parametrize("part", ["unet", "decoder"])
def test_a_shift_of_the_input_shifts_the_result(model: ldm_core.LatentDiffusion, part: str) -> None:
    """At every pixel, and so at the border: what is there after a shift was in the middle before."""
    function, f = predictions(model)[part]
    x = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def error() -> float:
        shifted = torch.roll(function(x), (f * SHIFT[0], f * SHIFT[1]), (2, 3))
        return relative_error(function(torch.roll(x, SHIFT, (2, 3))), shifted)

    assert error() > 0.05
    with ldm_core.seamless(model):
        assert error() < 1e-5


def test_a_lora_of_convolutions_is_seamless_too(model: ldm_core.LatentDiffusion, tmp_path: Path) -> None:
    path = write_unet_lora(model, lambda _, layer: layer.weight.ndim == 4, tmp_path / "lora.safetensors")
    lora = ldm_core.apply_lora(model, path)
    predict = predictions(model)["unet"][0]
    x = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), ldm_core.seamless(model):
        live = predict(x)
        shifted = torch.roll(live, SHIFT, (2, 3))
        assert relative_error(predict(torch.roll(x, SHIFT, (2, 3))), shifted) < 1e-5
        lora.fuse()
        assert relative_error(live, predict(x)) < 1e-5
        lora.remove()
        assert relative_error(predict(x), live) > 0.01


@pytest.mark.parametrize("backend", ["direct", "winograd"])
def test_the_middle_of_three_pictures_side_by_side_is_the_picture(backend: str) -> None:
    layer = Conv3x3(3, 5)
    layer.convolution = BACKENDS[backend]
    x = torch.randn(2, 3, 5, 8)
    with torch.no_grad():
        expected = layer(x.repeat(1, 1, 3, 3))[..., 5:10, 8:16]
        with ldm_core.seamless(replace_parts(layer)):
            assert relative_error(layer(x), expected) < 1e-5
        assert layer.convolution is BACKENDS[backend]
        assert torch.equal(layer(x), BACKENDS[backend](x, layer.weight, layer.bias))


def replace_parts(layer: torch.nn.Module) -> Any:
    """Something with a U-Net of one layer."""
    return type("Model", (), {"unet": torch.nn.Sequential(layer), "autoencoder": None})()


def test_pictures_have_no_seam_and_removal_restores_the_bits(model: ldm_core.LatentDiffusion) -> None:
    sampler = ldm_core.Sampler(model)
    options: dict[str, Any] = {"steps": 2, "seed": 1, "output": "tensor"}
    before = sampler.txt2img("a", **options)
    handle = ldm_core.seamless(model)
    assert is_seamless(model)
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    shifted = sampler.txt2img("a", noise=torch.roll(noise, SHIFT, (2, 3)), **options)
    drawn = sampler.txt2img("a", **options)
    torch.testing.assert_close(shifted, torch.roll(drawn, (4, 8), (2, 3)), atol=1e-4, rtol=0)
    assert not torch.allclose(drawn, before, atol=1e-2)
    handle.remove()
    handle.remove()
    assert not is_seamless(model)
    assert torch.equal(sampler.txt2img("a", **options), before)


@pytest.mark.parametrize("scale", [2, 1.5])
def test_enlarging_for_a_second_pass_wraps(scale: float) -> None:
    latent = torch.randn(1, 4, 8, 12)
    height, width = int(8 * scale), int(12 * scale)
    tiled = F.interpolate(latent.repeat(1, 1, 3, 3), size=(3 * height, 3 * width), mode="bilinear")
    whole = enlarged(latent, (height, width), "bilinear", wraps=True)
    torch.testing.assert_close(whole, tiled[..., height : 2 * height, width : 2 * width])


def test_what_cannot_be_seamless_is_refused(model: ldm_core.LatentDiffusion) -> None:
    with pytest.raises(ValueError, match="int has no U-Net or decoder"):
        ldm_core.seamless(3)
    with pytest.raises(
        ValueError, match=r"works in windows cannot be seamless; windowed\(model, wrap=True\)"
    ):
        ldm_core.seamless(ldm_core.windowed(model))
    with ldm_core.seamless(model), pytest.raises(ValueError, match="seamless already"):
        ldm_core.seamless(replace(model))
    model.unet.runner = model.unet.predict
    with pytest.raises(ValueError, match=r"compiled or captured: call seamless\(model\) before"):
        ldm_core.seamless(model)
