"""The linear preview: exact where the autoencoder is linear, useful where it is not, and nearly free."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ldm_core
from ldm_core.autoencoder import DiagonalGaussian
from ldm_core.watch.preview import LatentPreview, draw_pictures, fit_linear, fit_preview

WEIGHT = torch.tensor([[0.2, -0.1, 0.05, 0.0], [0.0, 0.2, 0.1, -0.1], [0.1, 0.0, -0.2, 0.15]])
BIAS = torch.tensor([0.5, 0.4, 0.6])


class LinearAutoencoder(nn.Module):
    """Latents are linear in the average colour of a pixel's area, with a fourth channel that is not used."""

    factor = 4
    mix = torch.tensor([[3.0, 0.5, 0.0], [0.0, -2.0, 1.0], [1.0, 1.0, 1.0]])

    def encode(self, images: Tensor) -> DiagonalGaussian:
        small = F.avg_pool2d(images, self.factor)
        z = torch.einsum("oc,bchw->bohw", self.mix, small)
        mean = torch.cat([z, torch.zeros_like(z[:, :1])], dim=1)
        return DiagonalGaussian(mean, torch.full_like(mean, -30.0))

    def decode(self, z: Tensor) -> Tensor:
        rgb = torch.einsum("oc,bchw->bohw", torch.linalg.inv(self.mix), z[:, :3])
        return F.interpolate(rgb, scale_factor=self.factor, mode="nearest")


@pytest.fixture(scope="module")
def preview(bundled: ldm_core.LatentDiffusion) -> LatentPreview:
    return fit_preview(bundled, pictures=8)


def test_a_known_linear_map_is_found_again() -> None:
    latents = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    known = LatentPreview(WEIGHT, BIAS, factor=4)
    rgb = F.conv2d(latents, WEIGHT[:, :, None, None], BIAS)
    found = fit_linear(latents, F.interpolate(rgb, scale_factor=4, mode="nearest"))
    assert found.factor == 4
    # solved in float64 and rounded to float32
    torch.testing.assert_close(found.weight, known.weight, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.bias, known.bias, atol=1e-6, rtol=0)


@pytest.mark.parametrize("latent_scale", [0.18215, 2.0])
def test_a_linear_autoencoder_is_previewed_exactly(
    bundled: ldm_core.LatentDiffusion, latent_scale: float
) -> None:
    config = replace(bundled.config, latent_scale=latent_scale)
    model = replace(bundled, autoencoder=LinearAutoencoder(), config=config)
    fitted = fit_preview(model, pictures=8)
    images = draw_pictures(6, 64, torch.Generator().manual_seed(99))
    latents = model.encode_image(images * 2 - 1)
    # a linear map of float32 latents that is fitted in float64: nothing is left but rounding
    torch.testing.assert_close(fitted(latents), F.avg_pool2d(images, 4), atol=1e-5, rtol=0)


@pytest.mark.slow  # fits with all pictures
def test_it_resembles_what_the_bundled_model_decodes(bundled: ldm_core.LatentDiffusion) -> None:
    """Measured with 25 steps and more prompts: R² 0.82, and 0.49 of noisy latents; grey: 0."""
    preview = fit_preview(bundled, pictures=24)
    latents = ldm_core.Sampler(bundled).txt2img(
        ["fire", "grinning face", "bear"], steps=6, guidance_scale=4.0, seed=3, output="latent"
    )
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    for x, least in ((latents, 0.6), (bundled.noise_schedule.add_noise(latents, noise, 500), 0.3)):
        with torch.no_grad():
            decoded = bundled.decode_latent(x) / 2 + 0.5
        target = F.avg_pool2d(decoded.clamp(0, 1), preview.factor)
        error = (preview(x) - target).square().mean()
        spread = (target - target.mean(dim=(0, 2, 3), keepdim=True)).square().mean()
        assert 1 - error / spread > least


@pytest.mark.slow  # takes the clock
def test_it_is_at_least_fifty_times_cheaper_than_decoding(
    bundled: ldm_core.LatentDiffusion, preview: LatentPreview
) -> None:
    """Measured: thousands of times, so that a busy machine does not fail this."""
    latent = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))

    def shortest(function: Callable[[Tensor], Tensor], repeats: int) -> float:
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            function(latent)
            times.append(time.perf_counter() - start)
        return min(times)

    with torch.no_grad():
        assert shortest(bundled.decode_latent, 3) > 50 * shortest(preview, 30)


@pytest.mark.slow  # three fits
def test_the_seed_decides_the_fit(bundled: ldm_core.LatentDiffusion) -> None:
    first, again, other = (fit_preview(bundled, seed, pictures=4) for seed in (0, 0, 1))
    assert torch.equal(first.weight, again.weight)
    assert torch.equal(first.bias, again.bias)
    assert not torch.equal(first.weight, other.weight)


def test_fitting_leaves_global_random_state_and_gradients_alone(bundled: ldm_core.LatentDiffusion) -> None:
    state = torch.get_rng_state()
    fitted = fit_preview(bundled, pictures=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert not fitted.weight.requires_grad
    assert not fitted(torch.zeros(1, 16, 2, 2, requires_grad=True)).requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_shapes_range_and_type(preview: LatentPreview, dtype: torch.dtype) -> None:
    latent = (5 * torch.randn(2, 16, 6, 10, generator=torch.Generator().manual_seed(1))).to(dtype)
    before = latent.clone()
    small = preview(latent)
    assert small.shape == (2, 3, 6, 10)
    assert small.dtype == torch.float32
    assert small.min() == 0  # latents of this size leave the colours on both sides
    assert small.max() == 1
    assert preview(latent, upscale="bicubic").shape == (2, 3, 96, 160)
    assert preview(latent, upscale="bicubic").min() >= 0
    assert preview(latent, upscale="bicubic").max() <= 1
    assert torch.equal(latent, before)


def test_nearest_repeats_every_colour_over_its_area(preview: LatentPreview) -> None:
    latent = torch.randn(1, 16, 3, 5, generator=torch.Generator().manual_seed(2))
    repeated = preview(latent).repeat_interleave(16, dim=2).repeat_interleave(16, dim=3)
    assert torch.equal(preview(latent, upscale="nearest"), repeated)


def test_pil_images_are_the_same_colours(preview: LatentPreview) -> None:
    latent = torch.randn(2, 16, 3, 5, generator=torch.Generator().manual_seed(2))
    images = preview.to_pil(latent)
    assert [image.size for image in images] == [(80, 48), (80, 48)]  # PIL says width first
    small = preview.to_pil(latent, upscale=None)[1]
    expected = (preview(latent)[1, :, 2, 4] * 255).round().int().tolist()
    assert np.asarray(small)[2, 4].tolist() == expected


def test_drawings_are_pictures_and_not_all_alike() -> None:
    pictures = draw_pictures(6, 32, torch.Generator().manual_seed(0))
    assert pictures.shape == (6, 3, 32, 32)
    assert pictures.min() >= 0
    assert pictures.max() <= 1
    assert (pictures.std(dim=(2, 3)).amax(dim=1) > 0.02).all()
    smooth, edged = pictures[0::2], pictures[1::2]  # by turns
    step = [kind.diff(dim=3).abs().median() for kind in (smooth, edged)]
    assert step[0] > 0.001  # a field changes everywhere
    assert step[1] == 0  # a plain area nowhere but at its edge


def test_bad_input_is_named(bundled: ldm_core.LatentDiffusion, preview: LatentPreview) -> None:
    with pytest.raises(ValueError, match=r"\(B, 16, h, w\), got \(1, 3, 8, 8\)"):
        preview(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"got \(16, 8, 8\)"):
        preview(torch.zeros(16, 8, 8))
    with pytest.raises(ValueError, match="'nearest' or 'bicubic', not 'lanczos'"):
        preview(torch.zeros(1, 16, 8, 8), upscale="lanczos")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pictures must be positive, not 0"):
        fit_preview(bundled, pictures=0)
    with pytest.raises(ValueError, match=r"got \(2, 3, 32, 30\)"):
        fit_linear(torch.zeros(2, 4, 8, 8), torch.zeros(2, 3, 32, 30))
    with pytest.raises(ValueError, match=r"got \(1, 3, 32, 32\)"):
        fit_linear(torch.zeros(2, 4, 8, 8), torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match=r"latents of \(B, C, h, w\), got \(4, 8, 8\)"):
        fit_linear(torch.zeros(4, 8, 8), torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match=r"got \(3, 32, 32\)"):
        fit_linear(torch.zeros(1, 4, 8, 8), torch.zeros(3, 32, 32))
    with pytest.raises(ValueError, match=r"got \(2, 3, 4, 4\)"):
        fit_linear(torch.zeros(2, 4, 8, 8), torch.zeros(2, 3, 4, 4))
