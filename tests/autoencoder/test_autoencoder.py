"""The autoencoder: its Gaussian's mathematics, every published form, overflow, and tiles."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.configs import SMALL
from support.reference import random_model
from torch.distributions import Normal, kl_divergence

from ldm_core.autoencoder import AutoencoderKL, DiagonalGaussian
from ldm_core.autoencoder.tiling import TiledAutoencoder, decode_tiled, encode_tiled, tiled
from ldm_core.config import AutoencoderConfig
from ldm_core.model import LatentDiffusion
from ldm_core.noise import generators

# ch_mult, embed_dim, attn_resolutions of the paper's KL autoencoders (table 8), and SD's f=8.
FORMS = {
    "kl-f4": ((1, 2, 4), 3, ()),
    "kl-f8": ((1, 2, 4, 4), 4, ()),
    "kl-f16": ((1, 1, 2, 2, 4), 16, (16,)),
    "kl-f32": ((1, 1, 2, 2, 4, 4), 64, (16, 8)),
}


def gaussian(seed: int) -> DiagonalGaussian:
    generator = torch.Generator().manual_seed(seed)
    mean, logvar = torch.randn(2, 3, 4, 5, 6, generator=generator, dtype=torch.float64)
    return DiagonalGaussian(mean, logvar)


@pytest.mark.parametrize("form", FORMS)
def test_every_published_form_runs(form: str) -> None:
    mult, channels, attends = FORMS[form]
    config = AutoencoderConfig(
        embed_dim=channels, z_channels=channels, ch=32, ch_mult=mult, attn_resolutions=attends
    )
    f = config.downsampling
    assert f == int(form.removeprefix("kl-f"))
    autoencoder = AutoencoderKL(config).eval()
    with torch.no_grad():
        q = autoencoder.encode(torch.rand(1, 3, 2 * f, 3 * f) * 2 - 1)
        assert q.mean.shape == q.std.shape == (1, channels, 2, 3)
        assert autoencoder.decode(q.mode()).shape == (1, 3, 2 * f, 3 * f)


def test_published_attention_levels() -> None:
    mult, channels, attends = FORMS["kl-f32"]
    config = AutoencoderConfig(
        embed_dim=channels, z_channels=channels, ch_mult=mult, attn_resolutions=attends
    )
    assert [config.has_attention(level) for level in range(6)] == [False] * 4 + [True] * 2


def test_kl_and_nll_are_those_of_torch_distributions() -> None:
    p, q = gaussian(0), gaussian(1)
    ours = [p.kl(), p.kl(q), p.nll(q.mean)]
    normal, other = Normal(p.mean, p.std), Normal(q.mean, q.std)
    theirs = [
        kl_divergence(normal, Normal(0.0, 1.0)),
        kl_divergence(normal, other),
        -normal.log_prob(q.mean),
    ]
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == (3,)
        assert torch.allclose(a, b.sum(dim=(1, 2, 3)), rtol=1e-12, atol=0)
    assert torch.equal(p.kl(p), torch.zeros(3))


def test_samples_have_the_mean_and_deviation() -> None:
    q = DiagonalGaussian(torch.full((1, 1, 300, 300), 3.0), torch.full((1, 1, 300, 300), 2.0))
    sample = q.sample(torch.Generator().manual_seed(0))
    # 90,000 draws: the mean is off by std / 300 = 0.009 a sigma, the deviation by less.
    assert abs(float(sample.mean()) - 3.0) < 0.04
    assert abs(float(sample.std()) / float(q.std[0, 0, 0, 0]) - 1) < 0.01
    assert torch.equal(q.mode(), q.mean)


def test_a_draw_is_the_generators() -> None:
    q = gaussian(2)
    both = q.sample(generators([1, 2, 3]))
    assert torch.equal(both, q.sample(generators([1, 2, 3])))
    row = DiagonalGaussian(q.mean[1:2], q.logvar[1:2]).sample(generators([2]))
    assert torch.equal(both[1:2], row)
    with pytest.raises(ValueError, match=r"one generator per image \(3\), got 2"):
        q.sample(generators([1, 2]))


def test_log_variance_is_kept_in_bounds() -> None:
    q = DiagonalGaussian.from_moments(torch.tensor([0.0, 1e9]).reshape(1, 2, 1, 1))
    assert float(q.logvar) == 20.0
    assert float(DiagonalGaussian.from_moments(torch.full((1, 2, 1, 1), -1e9)).logvar) == -30.0


def test_scaled_latents_are_the_autoencoders_times_the_scale(bundled: LatentDiffusion) -> None:
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        q = bundled.autoencoder.encode(images)
        latent = bundled.encode_image(images)
        assert torch.equal(latent, q.mean * bundled.config.latent_scale)
        drawn = bundled.encode_image(images, generators([0, 1]))
        assert torch.equal(drawn, q.sample(generators([0, 1])) * bundled.config.latent_scale)
        back = bundled.decode_latent(latent)
        assert torch.allclose(back, bundled.autoencoder.decode(q.mean), atol=1e-4)


def test_hooks_find_what_a_layer_gave(bundled: LatentDiffusion) -> None:
    """What comes after a layer may compute in place, but not on what somebody looks at."""
    decoder = bundled.autoencoder.decoder
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    handles = [
        layer.register_forward_hook(lambda _, __, out, name=name: seen.update({name: (out, out.clone())}))
        for name, layer in decoder.named_modules()
        if not list(layer.children())
    ]
    with torch.no_grad():
        decoder(torch.randn(1, 16, 4, 4, generator=torch.Generator().manual_seed(0)))
    for handle in handles:
        handle.remove()
    assert {"up.0.blocks.0.norm1", "up.0.blocks.0.conv1", "norm_out"} <= seen.keys()
    assert [name for name, (given, copy) in seen.items() if not given.equal(copy)] == []


def test_float16_overflow_is_decoded_again_in_float32() -> None:
    """Weights that take an inner layer over float16's 65,504, and the next one back down."""
    model = random_model(replace(SMALL["sd1"], autoencoder=AutoencoderConfig(ch=32, ch_mult=(1, 2))))
    autoencoder = model.autoencoder
    with torch.no_grad():
        autoencoder.decoder.conv_in.weight *= 2e5  # group norm undoes the size, after float16 has overflowed
        z = torch.randn(1, 4, 8, 8)
        autoencoder.encoder.conv_in.weight *= 2e5
        half = autoencoder.half()
        weights = {name: p.clone() for name, p in half.named_parameters()}
        assert not half._decode(z.half()).isfinite().all()
        rescued = half.decode(z.half())
        assert rescued.dtype == torch.float16
        assert rescued.isfinite().all()
        assert all(torch.equal(p, weights[name]) for name, p in half.named_parameters())
        images = torch.rand(2, 3, 16, 16) * 2 - 1
        images[1] = 0  # nothing to overflow: this row must not depend on the other
        posterior = half.encode(images.half())
        assert posterior.mean.isfinite().all()
        alone = half.encode(images[1:].half())
        assert torch.allclose(posterior.mean[1:], alone.mean, atol=2e-3)  # float16 of another batch size
        expected = autoencoder.float().decode(z.half().float())
    assert (rescued.float() - expected).abs().max() < 2e-3 * expected.abs().max()


def test_wrong_shapes_are_refused(bundled: LatentDiffusion) -> None:
    with pytest.raises(ValueError, match=r"expected images of \(B, 3, H, W\), got \(1, 1, 16, 16\)"):
        bundled.autoencoder.encode(torch.zeros(1, 1, 16, 16))
    with pytest.raises(ValueError, match="H and W must be multiples of 16, got 32 and 40"):
        bundled.autoencoder.encode(torch.zeros(1, 3, 32, 40))
    with pytest.raises(ValueError, match=r"expected latents of \(B, 16, h, w\), got \(16, 8, 8\)"):
        bundled.autoencoder.decode(torch.zeros(16, 8, 8))


@pytest.mark.parametrize("size", [(16, 16), (20, 33), (64, 17), (100, 40)], ids=str)
@pytest.mark.parametrize("overlap", [0, 4, 9])
def test_tiles_of_a_local_function_blend_to_the_whole(size: tuple[int, int], overlap: int) -> None:
    """Weights add up to one everywhere, whatever the tiling: a pointwise function must come out as it is."""
    from fractions import Fraction

    x = torch.rand(2, 3, *size)

    def doubled(part: torch.Tensor) -> torch.Tensor:
        assert max(part.shape[2:]) <= 16
        return torch.nn.functional.interpolate(part, scale_factor=2.0) * 3

    out = tiled(doubled, x, tile=16, overlap=overlap, scale=Fraction(2))
    assert (out - doubled_whole(x)).abs().max() < 1e-5


def doubled_whole(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.interpolate(x, scale_factor=2.0) * 3


def test_tiled_decoding_is_close_and_has_no_seams(bundled: LatentDiffusion) -> None:
    """Measured on a latent of four pictures, drawn by the model: four tiles of 12 × 12 of its 16 × 16.

    In tiles of one picture's size each has the colours of that picture alone, which the whole has not.
    """
    from ldm_core import Sampler

    prompts = ["panda", "fire", "angry face", "dog face"]
    latents = Sampler(bundled).txt2img(prompts, steps=8, guidance_scale=4, seed=0, output="latent")
    rows = [torch.cat([latents[0], latents[1]], dim=2), torch.cat([latents[2], latents[3]], dim=2)]
    z = torch.cat(rows, dim=1)[None] / bundled.config.latent_scale
    with torch.no_grad():
        whole = bundled.autoencoder.decode(z)
        tiles = decode_tiled(bundled.autoencoder, z, tile=12, overlap=8)
        again = encode_tiled(bundled.autoencoder, whole.clamp(-1, 1), tile=192, overlap=128)
        once = bundled.autoencoder.encode(whole.clamp(-1, 1))
    error = (tiles - whole).abs()
    assert tiles.shape == whole.shape
    # Of a range of 2, since the norms' statistics are those of a tile: 0.035, of which rounding is no part.
    assert error.mean() < 0.05
    # A seam would be a jump between neighbours that the untiled picture does not have.
    jumps = lambda x: (x[..., 1:] - x[..., :-1]).abs().mean(dim=(0, 1, 2))  # noqa: E731
    assert (jumps(tiles) - jumps(whole)).max() < 0.05
    assert (again.mean - once.mean).abs().mean() < 0.1 * once.mean.std()


def test_a_picture_of_one_tile_is_the_untiled_one(bundled: LatentDiffusion) -> None:
    z = torch.randn(1, 16, 8, 8)
    with torch.no_grad():
        assert torch.allclose(
            decode_tiled(bundled.autoencoder, z, tile=8, overlap=2), bundled.autoencoder.decode(z), atol=1e-5
        )


def test_impossible_tiles_are_refused(bundled: LatentDiffusion) -> None:
    with pytest.raises(ValueError, match=r"overlap in 0\.\.15, got 16"):
        decode_tiled(bundled.autoencoder, torch.zeros(1, 16, 32, 32), tile=16, overlap=16)
    with pytest.raises(ValueError, match="must be multiples of 16"):
        encode_tiled(bundled.autoencoder, torch.zeros(1, 3, 64, 64), tile=30, overlap=8)


@pytest.mark.slow
def test_a_model_can_be_given_a_tiled_autoencoder(bundled: LatentDiffusion) -> None:
    from ldm_core import Sampler

    model = replace(bundled, autoencoder=TiledAutoencoder(bundled.autoencoder, tile=8, overlap=4))
    options = {"steps": 2, "seed": 0, "output": "tensor"}
    small = Sampler(model).txt2img("fire", **options)
    assert (small - Sampler(bundled).txt2img("fire", **options)).abs().max() < 1e-5
    large = Sampler(model).txt2img("fire", height=128, width=320, **options)
    assert large.shape == (1, 3, 128, 320)
    again = Sampler(model).img2img("fire", large, 0.5, **options)
    assert again.shape == large.shape
