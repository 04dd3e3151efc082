"""The VQ autoencoder: its quantiser against the definition, and the whole network against diffusers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import VQModel
from support.configs import TINY
from support.reference import computed_alike, relative_error
from torch import Tensor

import ldm_core.autoencoder.vq as vq_module
from ldm_core import Sampler, build
from ldm_core.autoencoder import AutoencoderVQ, AutoencoderVQConfig
from ldm_core.autoencoder.names import diffusers_map
from ldm_core.autoencoder.settings import autoencoder_settings
from ldm_core.autoencoder.tiling import TiledAutoencoder
from ldm_core.checkpoint.key_map import to_file
from ldm_core.config import ConfigError, LatentDiffusionConfig
from ldm_core.nn.convolution import convolutions
from ldm_core.nn.optimization import optimize
from ldm_core.nn.prepared import PreparedConvolution
from ldm_core.watch.preview import fit_preview

TINY_VQ = AutoencoderVQConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1, n_embed=50)
F8 = AutoencoderVQConfig(
    embed_dim=4, z_channels=4, ch_mult=(1, 2, 2, 4), n_embed=16384, attn_resolutions=(32,)
)
# The paper's forms at small width, and codes that are wider than the latents of the networks.
FORMS = {
    "f4": AutoencoderVQConfig(ch=32, n_embed=64),
    "f4-noattn": AutoencoderVQConfig(ch=32, n_embed=64, middle_attention=False),
    "f8": replace(F8, ch=32, n_embed=64),
    "f16": AutoencoderVQConfig(
        embed_dim=8, z_channels=8, ch=32, ch_mult=(1, 1, 2, 2, 4), n_embed=64, attn_resolutions=(16,)
    ),
    "wide codes": AutoencoderVQConfig(embed_dim=6, z_channels=3, ch=32, ch_mult=(1, 2), n_embed=64),
}


def random_vq(config: AutoencoderVQConfig) -> AutoencoderVQ:
    """With codes that are spread like the latents, as they are after training."""
    torch.manual_seed(0)
    autoencoder = AutoencoderVQ(config).eval()
    torch.nn.init.normal_(autoencoder.codebook)
    return autoencoder


def images(config: AutoencoderVQConfig, rows: int = 2, columns: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    f = config.downsampling
    return torch.rand(2, 3, rows * f, columns * f, generator=generator) * 2 - 1


# --- the quantiser ---


def nearest(z: list[float], codebook: list[list[float]]) -> int:
    """The definition, as a loop in float64 (Python's floats)."""
    distances = [sum((a - b) ** 2 for a, b in zip(z, code, strict=True)) for code in codebook]
    return distances.index(min(distances))


def test_indices_are_those_of_the_nearest_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    autoencoder = random_vq(TINY_VQ)
    h = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(2))
    z_q, indices = autoencoder.quantize(h)
    assert indices.dtype == torch.long
    assert indices.shape == (2, 5, 7)
    codes = autoencoder.codebook.double().tolist()
    for b, y, x in torch.cartesian_prod(torch.arange(2), torch.arange(5), torch.arange(7)).tolist():
        assert int(indices[b, y, x]) == nearest(h[b, :, y, x].double().tolist(), codes)
        assert torch.equal(z_q[b, :, y, x], autoencoder.codebook[indices[b, y, x]])
    monkeypatch.setattr(vq_module, "MAX_DISTANCES", 170)  # three positions at once
    assert torch.equal(autoencoder.quantize(h)[1], indices)


def test_memory_of_the_quantiser_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    autoencoder, sizes, cdist = AutoencoderVQ(replace(TINY_VQ, n_embed=8192)), [], torch.cdist

    def counted(a: Tensor, b: Tensor, **options: str) -> Tensor:
        sizes.append(len(a) * len(b))
        return cdist(a, b, **options)

    monkeypatch.setattr(torch, "cdist", counted)
    assert autoencoder.quantize(torch.randn(1, 3, 64, 64))[1].shape == (1, 64, 64)
    assert max(sizes) <= vq_module.MAX_DISTANCES
    assert sum(sizes) == 64 * 64 * 8192


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_of_equal_codes_the_first_is_taken(dtype: torch.dtype) -> None:
    """Wherever its copies are in the codebook: the place of a column may change how a product is rounded."""
    autoencoder = random_vq(replace(TINY_VQ, n_embed=1037)).to(dtype)
    with torch.no_grad():
        autoencoder.codebook[61:] = autoencoder.codebook[torch.arange(61, 1037) % 61]
    h = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(2)).to(dtype)
    z_q, indices = autoencoder.quantize(h)
    assert int(indices.max()) < 61
    assert z_q.dtype == dtype
    halfway = torch.zeros(1, 3, 1, 1, dtype=dtype)
    with torch.no_grad():
        autoencoder.codebook[:] = 9
        autoencoder.codebook[7, :], autoencoder.codebook[5, :] = 0.5, -0.5
    assert int(autoencoder.quantize(halfway)[1]) == 5


def test_far_latents_still_find_the_nearest_code() -> None:
    """|z|^2 + |e|^2 - 2 z.e in float32 does not distinguish these codes: it rounds terms of 3e6 to 0.25."""
    autoencoder = random_vq(replace(TINY_VQ, n_embed=2))
    with torch.no_grad():
        autoencoder.codebook[:] = torch.tensor([[1000.0, 1000, 1000], [1000.01, 1000, 1000]])
    h = torch.tensor([1000.008, 1000, 1000]).reshape(1, 3, 1, 1)
    assert int(autoencoder.quantize(h)[1]) == 1


def test_gradients_pass_the_quantiser_unchanged() -> None:
    autoencoder = random_vq(TINY_VQ)
    h = torch.randn(2, 3, 4, 4, requires_grad=True)
    gradient = torch.randn(2, 3, 4, 4)
    z_q, indices = autoencoder.quantize(h)
    z_q.backward(gradient)
    assert torch.equal(h.grad, gradient)
    assert autoencoder.codebook.grad is None
    with torch.no_grad():
        assert torch.equal(autoencoder.quantize(h)[0], z_q)
        assert torch.equal(autoencoder.quantize(z_q)[1], indices)


def test_latents_that_are_not_finite_are_not_hidden_behind_a_code() -> None:
    autoencoder = random_vq(TINY_VQ)
    for bad in (float("nan"), float("inf")):
        h = torch.zeros(2, 3, 4, 4)
        h[0, 1, 2, 3] = bad
        finite = autoencoder.decode(h).isfinite().flatten(1).all(dim=1)
        assert finite.tolist() == [False, True]


# --- the network ---


def reference(autoencoder: AutoencoderVQ) -> VQModel:
    """diffusers' network with the same weights, built from the settings that a folder has."""
    config = autoencoder.config
    settings = autoencoder_settings(config, 256, 1.0)
    theirs = VQModel(**{k: v for k, v in settings.items() if k != "_class_name"}).eval()
    theirs.load_state_dict(to_file(diffusers_map(config), autoencoder.state_dict()))
    return theirs


def expect_parity(autoencoder: AutoencoderVQ, x: Tensor, bound: float) -> None:
    """With convolutions and a memory layout like theirs, so that sums are in the same order."""
    theirs = reference(autoencoder).to(x.dtype)
    with torch.no_grad(), computed_alike(autoencoder):
        h = theirs.encode(x).latents
        assert relative_error(autoencoder.encode(x).mode(), h) < bound
        z_q, indices = autoencoder.quantize(h)
        quantised, _, (_, _, flat) = theirs.quantize(h)
        assert torch.equal(indices.flatten(), flat)
        assert relative_error(z_q, quantised) < bound
        decoded, direct = theirs.decode(h).sample, theirs.decode(h, force_not_quantize=True).sample
        assert relative_error(autoencoder.decode(h), decoded) < bound
        assert relative_error(autoencoder.decode(h, quantize=False), direct) < bound
        assert relative_error(decoded, direct) > 1e-2


@pytest.mark.parametrize("form", FORMS)
def test_network_is_diffusers(form: str) -> None:
    autoencoder = random_vq(FORMS[form])
    has_middle = hasattr(autoencoder.encoder.mid, "attention") and hasattr(
        autoencoder.decoder.mid, "attention"
    )
    assert has_middle == FORMS[form].middle_attention
    expect_parity(autoencoder, images(FORMS[form]), 1e-5)


@pytest.mark.slow  # the published width, in two libraries
def test_published_f8_is_diffusers() -> None:
    """In float64: in float32, sums of this width leave each side about 1e-5 from the exact result."""
    expect_parity(random_vq(F8).double(), images(F8, 4, 6).double(), 1e-9)


def test_latents_are_those_before_quantisation() -> None:
    autoencoder = random_vq(TINY_VQ)
    x = images(TINY_VQ)
    with torch.no_grad():
        posterior = autoencoder.encode(x)
        h = posterior.mode()
        state = torch.get_rng_state()
        assert torch.equal(posterior.sample(torch.Generator()), h)
        assert torch.equal(posterior.sample(), h)
        assert torch.equal(torch.get_rng_state(), state)
        z_q, indices = autoencoder.quantize(h)
        assert not torch.equal(z_q, h)
        decoded = autoencoder.decode(h)
        assert torch.equal(decoded, autoencoder.decode(z_q, quantize=False))
        assert torch.equal(decoded, autoencoder.decode_indices(indices))
        assert torch.equal(decoded, autoencoder(h))


def test_float16_overflow_is_computed_again_in_float32() -> None:
    """As in the KL autoencoder; the codes are looked up again from the latents of the second attempt."""
    autoencoder = random_vq(TINY_VQ)
    with torch.no_grad():
        autoencoder.encoder.conv_in.weight *= 2e5
        autoencoder.decoder.conv_in.weight *= 2e5
        half, x = autoencoder.half(), images(TINY_VQ).half()
        assert not half._moments(x).isfinite().all()
        h = half.encode(x).mode()
        assert h.dtype == torch.float16
        assert h.isfinite().all()
        decoded = half.decode(h)
        assert decoded.dtype == torch.float16
        assert decoded.isfinite().all()
        expected = autoencoder.float().decode(h.float())
    assert (decoded.float() - expected).abs().max() < 2e-3 * expected.abs().max()


def test_wrong_inputs_are_refused() -> None:
    autoencoder = AutoencoderVQ(TINY_VQ)
    with pytest.raises(ValueError, match=r"expected images of \(B, 3, H, W\), got \(1, 1, 16, 16\)"):
        autoencoder.encode(torch.zeros(1, 1, 16, 16))
    with pytest.raises(ValueError, match="H and W must be multiples of 2, got 32 and 41"):
        autoencoder.encode(torch.zeros(1, 3, 32, 41))
    for function in (autoencoder.decode, autoencoder.quantize):
        with pytest.raises(ValueError, match=r"expected latents of \(B, 3, h, w\), got \(1, 4, 8, 8\)"):
            function(torch.zeros(1, 4, 8, 8))
    for bad, got in ((torch.zeros(2, 2), r"torch.float32 of \(2, 2\)"), (torch.zeros(1, 2, 2), "float32")):
        with pytest.raises(ValueError, match=rf"a LongTensor of indices \(B, h, w\), got .*{got}"):
            autoencoder.decode_indices(bad)
    for wrong in (-1, 50):
        with pytest.raises(ValueError, match=rf"expected indices in 0\.\.49, got {wrong}\.\.{wrong}"):
            autoencoder.decode_indices(torch.full((1, 2, 2), wrong))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_embed": 0}, r"n_embed must be an int in 1\.\.1048576, not 0"),
        ({"n_embed": 2.0}, "n_embed must be an int"),
        ({"middle_attention": 1}, "middle_attention must be true or false, not 1"),
        ({"ch": 33}, "ch must be a multiple of 32"),
        ({"embed_dim": 0}, "embed_dim must be an int"),
    ],
)
def test_impossible_configurations_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AutoencoderVQConfig(**values)


# --- in a model ---


@pytest.fixture
def model_config() -> LatentDiffusionConfig:
    sd1 = TINY["sd1"]
    unet = replace(sd1.unet, in_channels=3, out_channels=3)
    return replace(sd1, unet=unet, autoencoder=TINY_VQ, latent_scale=1.0)


def test_a_model_samples_and_decodes_codes(model_config: LatentDiffusionConfig) -> None:
    torch.manual_seed(0)
    model = build(model_config)
    torch.nn.init.normal_(model.autoencoder.codebook)
    assert isinstance(model.autoencoder, AutoencoderVQ)
    options = {"steps": 2, "seed": 0, "height": 32, "width": 32}
    sampler = Sampler(model)
    latent = sampler.txt2img("a cat", output="latent", **options)
    image = sampler.txt2img("a cat", output="tensor", **options)
    with torch.no_grad():
        codes = model.autoencoder.quantize(latent)[0]
        decoded = model.autoencoder.decode(codes, quantize=False)
    assert torch.allclose(image, (decoded / 2 + 0.5).clamp(0, 1), atol=1e-5)
    assert fit_preview(model, pictures=4)(latent).shape == (1, 3, 16, 16)
    assert sampler.img2img("a cat", image, 0.5, steps=2, seed=0, output="tensor").shape == image.shape


def test_a_models_configuration_survives_json(model_config: LatentDiffusionConfig) -> None:
    import json

    again = LatentDiffusionConfig.from_dict(json.loads(json.dumps(model_config.to_dict())))
    assert again == model_config
    assert type(again.autoencoder) is AutoencoderVQConfig


def test_optimisations_change_only_rounding() -> None:
    config = replace(TINY_VQ, ch=96, ch_mult=(2, 2))
    autoencoder, x = random_vq(config), images(config, 8, 8)
    with torch.no_grad():
        h = autoencoder.encode(x).mode()
        expected = autoencoder.decode(h)
        optimize(autoencoder)
        assert any(isinstance(layer.convolution, PreparedConvolution) for layer in convolutions(autoencoder))
        assert (autoencoder.encode(x).mode() - h).abs().max() < 1e-4 * h.abs().max()
        assert (autoencoder.decode(h) - expected).abs().max() < 1e-4 * expected.abs().max()


@torch.no_grad()
def test_vmap_and_jvp() -> None:
    """The derivative is that of the decoder at the codes, since the quantiser's is one."""
    autoencoder = random_vq(TINY_VQ).double()
    h, tangent = torch.randn(3, 1, 3, 4, 4).double(), torch.randn(1, 3, 4, 4).double()
    loop = torch.stack([autoencoder.decode(row) for row in h])
    assert relative_error(torch.func.vmap(autoencoder.decode)(h), loop) < 1e-12
    out, derivative = torch.func.jvp(autoencoder.decode, (h[0],), (tangent,))
    assert relative_error(out, loop[0]) < 1e-12

    def decode(z: Tensor) -> Tensor:
        return autoencoder.decode(z, quantize=False)

    z_q = autoencoder.quantize(h[0])[0]
    assert relative_error(derivative, torch.func.jvp(decode, (z_q,), (tangent,))[1]) < 1e-12


def test_tiles_of_a_vq_autoencoder() -> None:
    autoencoder = random_vq(TINY_VQ)
    tiles = TiledAutoencoder(autoencoder, tile=8, overlap=4)
    small, large = images(TINY_VQ, 8, 8), images(TINY_VQ, 12, 16)
    with torch.no_grad():
        h = autoencoder.encode(small).mode()
        assert torch.allclose(tiles.encode(small).mode(), h, atol=1e-5)
        assert torch.allclose(tiles.decode(h), autoencoder.decode(h), atol=1e-5)
        posterior = tiles.encode(large)
        assert torch.equal(posterior.sample(), posterior.mode())
        assert posterior.mode().shape == (2, 3, 12, 16)
        assert tiles.decode(posterior.mode()).shape == large.shape
