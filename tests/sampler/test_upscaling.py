"""`Sampler.upscale`: models for super-resolution with random weights, sizes, memory and errors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image
from support.configs import SMALL, TINY
from support.reference import random_model, relative_error
from torch import Tensor, nn

import ldm_core
from ldm_core import DDIM, Sampler, Windows
from ldm_core.conditioners import LowResolutionConfig, NoisedImageConfig
from ldm_core.config import BSR_SR, X4_UPSCALER, AutoencoderConfig
from ldm_core.model import LatentDiffusion
from ldm_core.upscaling import DECODER_MAPS, memory_needed, memory_of, padded

SMALL_PICTURE = torch.rand(1, 3, 8, 12, generator=torch.Generator().manual_seed(0))
STEPS: dict[str, Any] = {"steps": 2, "seed": 3}


@pytest.fixture(scope="module")
def bsr() -> LatentDiffusion:
    """As bsr_sr, with f = 2 and a U-Net of two levels."""
    unet = replace(TINY["sd1"].unet, in_channels=7, context_dim=None)
    config = replace(TINY["sd1"], text_encoder=None, unet=unet, conditioner=LowResolutionConfig())
    return random_model(config)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def x4() -> LatentDiffusion:
    """As the x4 upscaler, with f = 2 and a U-Net of two levels."""
    unet = replace(
        SMALL["x4-upscaler"].unet,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(2,),
        disable_self_attentions=(True, False),
    )
    config = replace(SMALL["x4-upscaler"], unet=unet, autoencoder=TINY["sd1"].autoencoder, image_size=32)
    return random_model(replace(config, conditioner=NoisedImageConfig(levels=10)))  # type: ignore[no-any-return]


def test_super_resolution_is_sampling_with_the_small_picture(bsr: LatentDiffusion) -> None:
    sampler = Sampler(bsr, DDIM(eta=1.0))
    large = sampler.upscale(SMALL_PICTURE, output="tensor", **STEPS)
    assert large.shape == (1, 3, 16, 24)
    assert torch.equal(large, sampler.sample(SMALL_PICTURE, output="tensor", **STEPS))
    pil = Image.new("RGB", (12, 8), "red")
    [picture] = sampler.upscale(pil, **STEPS)
    assert picture.size == (24, 16)
    assert picture.info["seed"] == 3
    assert (picture.info["recipe"]["height"], picture.info["recipe"]["width"]) == (16, 24)
    both = sampler.upscale([pil, pil], num_images=2, output="tensor", steps=1)
    assert both.shape == (4, 3, 16, 24)


def test_the_x4_upscaler_takes_a_prompt_and_a_noise_level(x4: LatentDiffusion) -> None:
    sampler = Sampler(x4)
    options: dict[str, Any] = {"output": "latent", **STEPS}
    large = sampler.upscale(SMALL_PICTURE, "a cat", noise_level=7, **options)
    inputs = {"prompt": "a cat", "image": SMALL_PICTURE, "noise_level": 7}
    assert torch.equal(large, sampler.sample(inputs, **options))
    assert not torch.equal(large, sampler.upscale(SMALL_PICTURE, "a cat", noise_level=1, **options))
    assert not torch.equal(large, sampler.upscale(SMALL_PICTURE, "fog", noise_level=7, **options))
    negative = sampler.upscale(SMALL_PICTURE, "a cat", noise_level=7, negative_prompt="fog", **options)
    assert torch.equal(negative, sampler.sample(inputs, unconditional="fog", **options))
    alone = sampler.upscale(SMALL_PICTURE, "a cat", noise_level=7, guidance_scale=1, **options)
    assert not torch.equal(large, alone)
    two = sampler.upscale(SMALL_PICTURE, ["a cat", "fog"], noise_level=7, output="pil", steps=1, seed=0)
    assert [picture.info["recipe"]["prompt"] for picture in two] == ["a cat", "fog"]
    assert two[1].info["recipe"]["noise_level"] == 7
    assert two[1].info["recipe"]["guidance_scale"] == 9.0


@pytest.mark.parametrize("size", [(8, 12), (7, 9), (3, 1), (5, 2)])
def test_other_sizes_are_padded_and_the_result_is_cropped(
    bsr: LatentDiffusion, size: tuple[int, int]
) -> None:
    h, w = size
    picture = SMALL_PICTURE[..., :h, :w]
    sampler = Sampler(bsr)
    large = sampler.upscale(picture, output="tensor", steps=1, seed=0)
    assert large.shape == (1, 3, 2 * h, 2 * w)
    whole = sampler.sample(padded(picture, 2), output="tensor", steps=1, seed=0)
    assert torch.equal(large, whole[..., : 2 * h, : 2 * w])
    latent = sampler.upscale(picture, output="latent", steps=1, seed=0)
    assert latent.shape == (1, 4, h, w)
    [pil] = sampler.upscale(picture, steps=1, seed=0)
    assert pil.size == (2 * w, 2 * h)
    assert (pil.info["recipe"]["height"], pil.info["recipe"]["width"]) == (2 * h, 2 * w)


def test_padding_reflects_the_picture() -> None:
    x = torch.arange(6.0).reshape(1, 1, 2, 3)
    assert padded(x, 3).tolist() == [[[[0, 1, 2], [3, 4, 5], [0, 1, 2]]]]
    assert padded(x, 8)[0, 0, :, -1].tolist() == [2, 5, 5, 5, 5, 5, 5, 5], "too small to be reflected"
    assert torch.equal(padded(x, 1), x)


def test_windows(bsr: LatentDiffusion) -> None:
    sampler = Sampler(bsr)
    windows = Windows(8, 4)
    large = sampler.upscale(SMALL_PICTURE, windows=windows, output="tensor", **STEPS)
    other = Sampler(ldm_core.windowed(bsr, size=8, stride=4))
    assert torch.equal(large, other.upscale(SMALL_PICTURE, output="tensor", **STEPS))
    plain = sampler.upscale(SMALL_PICTURE, output="tensor", **STEPS)
    assert not torch.equal(large, plain)
    one = sampler.upscale(SMALL_PICTURE, windows=Windows(64), output="tensor", **STEPS)
    assert torch.equal(one, plain)
    assert sampler.model is bsr
    with pytest.raises(ValueError, match="already works in windows"):
        other.upscale(SMALL_PICTURE, windows=windows)


@pytest.mark.parametrize(
    ("config", "size"),
    [
        (TINY["sd1"], (8, 12)),
        (
            replace(TINY["sd1"], autoencoder=AutoencoderConfig(ch=32, ch_mult=(1, 2, 2), num_res_blocks=1)),
            (4, 4),
        ),
    ],
)
def test_the_largest_feature_map_of_the_decoder(config: Any, size: tuple[int, int]) -> None:
    decoder = random_model(config).autoencoder
    largest: list[int] = []

    def record(module: nn.Module, args: Any, output: Tensor) -> None:
        largest.append(output.numel())

    for module in decoder.modules():
        module.register_forward_hook(record)
    with torch.no_grad():
        decoder.decode(torch.zeros(2, 4, *size))
    assert memory_needed(config, 2, *size, bytes_each=4) == DECODER_MAPS * 4 * max(largest)


def test_memory_of_the_published_models() -> None:
    """Three maps of 256 channels: 1 GiB each for a result of 1024x1024 pixels in float32."""
    for config in (BSR_SR, X4_UPSCALER):
        assert memory_needed(config, 1, 256, 256, 4) == 3 * 2**30
        assert memory_needed(config, 2, 256, 128, 2) == 3 * 2**29


def test_a_picture_too_large_for_the_memory_is_refused_at_once(
    bsr: LatentDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = memory_needed(bsr.config, 1, 8, 12, 4)
    monkeypatch.setattr("ldm_core.upscaling.memory_of", lambda device: needed)
    sampler = Sampler(bsr)
    options: dict[str, Any] = {"output": "latent", **STEPS}
    assert sampler.upscale(SMALL_PICTURE, **options).shape == (1, 4, 8, 12)
    two = SMALL_PICTURE.expand(2, -1, -1, -1)
    message = r"2 image\(s\) of 12x8 needs about .* pass windows=ldm_core.Windows\(16\), or use Sampler\(b"
    with pytest.raises(ValueError, match=message):
        sampler.upscale(two, **options)
    assert Sampler(bsr, batch_size=1).upscale(two, **options).shape == (2, 4, 8, 12)
    monkeypatch.setattr("ldm_core.upscaling.memory_of", lambda device: needed - 1)
    with pytest.raises(ValueError, match=r"1 image\(s\) of 12x8 .*windows=ldm_core.Windows\(16\)$"):
        sampler.upscale(SMALL_PICTURE, **options)
    assert sampler.upscale(SMALL_PICTURE, windows=Windows(8), **options).shape == (1, 4, 8, 12)
    monkeypatch.setattr("ldm_core.upscaling.memory_of", lambda device: None)
    assert sampler.upscale(SMALL_PICTURE, **options).shape == (1, 4, 8, 12)


def test_the_system_reports_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    found = memory_of(cpu)
    assert found is None or 2**28 < found < 2**50
    monkeypatch.delattr("os.sysconf")
    assert memory_of(cpu) is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prompt": "a cat"}, "takes no prompt, got 'a cat'"),
        ({"noise_level": 3}, "takes no noise_level, got 3"),
        ({"negative_prompt": "fog"}, "takes no prompts, got a negative_prompt"),
        ({"image": SMALL_PICTURE * 2 - 1}, r"image: expected image values in \[0, 1\]"),
        ({"image": None}, "image: expected the image as a PIL image"),
        ({"image": SMALL_PICTURE[..., :0]}, "image: expected an image with pixels"),
        ({"output": "png"}, "output must be"),
        ({"windows": Windows(9)}, "windows must be multiples of 2"),
    ],
)
def test_requests_that_are_refused(bsr: LatentDiffusion, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Sampler(bsr).upscale(**{"image": SMALL_PICTURE, **options})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prompt": ["a", "b", "c"], "image": SMALL_PICTURE.expand(2, -1, -1, -1)}, "2 image.*, got 3"),
        ({"prompt": []}, "one prompt or one per image for 1 image.*, got 0"),
        ({"prompt": 3}, "prompt must be a string"),
        ({"noise_level": 10}, r"noise_level must be an int in 0\.\.9, not 10"),
    ],
)
def test_requests_that_the_upscaler_refuses(x4: LatentDiffusion, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Sampler(x4).upscale(**{"image": SMALL_PICTURE, **options})


def test_other_models_name_those_that_can() -> None:
    with pytest.raises(ValueError, match=r"'bsr-sr'.*'x4-upscaler'.*conditioner is TextConditioner"):
        Sampler(random_model(TINY["sd1"])).upscale(SMALL_PICTURE)


def test_a_picture_in_windows_resembles_the_whole_one(bsr: LatentDiffusion) -> None:
    """With windows that overlap by all but two pixels, the means are close to the whole prediction."""
    sampler = Sampler(bsr)
    options: dict[str, Any] = {"output": "latent", "steps": 1, "seed": 0}
    plain = sampler.upscale(SMALL_PICTURE, **options)
    close = sampler.upscale(SMALL_PICTURE, windows=Windows((8, 10), (8, 2)), **options)
    assert relative_error(close, plain) < 0.5
