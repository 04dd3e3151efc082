"""The loss of an autoencoder with vector quantisation: its terms, their gradients, and a short training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.training_batches import batch, generators
from support.training_runs import losses, pictures, rows, run

from ldm_core.autoencoder import AutoencoderVQ, AutoencoderVQConfig, DiagonalGaussian
from ldm_core.training import (
    AutoencoderVQLossWeights,
    AutoencoderVQObjective,
    CachedLatents,
    PatchDiscriminator,
)
from ldm_core.training.autoencoder_loss import multiscale_gradient_loss
from ldm_core.training.vq_loss import codebook_loss, perplexity

CONFIG = AutoencoderVQConfig(ch=32, ch_mult=(1, 2), num_res_blocks=1, n_embed=16)


@pytest.fixture
def autoencoder() -> AutoencoderVQ:
    torch.manual_seed(0)
    return AutoencoderVQ(CONFIG)


@pytest.mark.parametrize("legacy", [False, True])
def test_codebook_loss_is_the_papers(legacy: bool) -> None:
    """Its gradients, since its value is (1 + beta) times the squared error in either form."""
    z = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    e = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    loss = codebook_loss(z, e, beta=0.25, legacy=legacy)
    loss.backward()
    with torch.no_grad():
        assert float(loss) == pytest.approx(1.25 * float(F.mse_loss(z, e)))
        pull = 2 * (z - e) / z.numel()
        to_latents, to_codes = (1.0, 0.25) if legacy else (0.25, 1.0)
        assert torch.allclose(z.grad, to_latents * pull, rtol=1e-12)
        assert torch.allclose(e.grad, -to_codes * pull, rtol=1e-12)


def test_terms_add_up(autoencoder: AutoencoderVQ) -> None:
    weights = AutoencoderVQLossWeights(perceptual=0.5, codebook=3.0, beta=0.5, l1_start=10)
    objective, data = AutoencoderVQObjective(autoencoder, weights=weights), batch()
    images = data["image"]
    with torch.no_grad():
        h = autoencoder.encode(images).mode()
        z_q, indices = autoencoder.quantize(h)
        decoded = autoencoder.decode(h)
        rest = 0.5 * multiscale_gradient_loss(images, decoded) + 3 * 1.5 * F.mse_loss(h, z_q)
        for step, error in ((9, F.mse_loss(decoded, images)), (10, F.l1_loss(decoded, images))):
            loss, metrics = objective(data, generators(), step)
            assert float(loss) == pytest.approx(float(error + rest), rel=1e-5)
        assert float(metrics["codebook"]) == pytest.approx(1.5 * float(F.mse_loss(h, z_q)), rel=1e-5)
        assert float(metrics["perplexity"]) == pytest.approx(float(perplexity(indices)))


def test_every_parameter_learns(autoencoder: AutoencoderVQ) -> None:
    """The encoder from the reconstruction, too, through the quantiser; of the codes, those in use."""
    torch.nn.init.normal_(autoencoder.codebook)
    weights = AutoencoderVQLossWeights(codebook=1e-9)
    objective, data = AutoencoderVQObjective(autoencoder, weights=weights), batch()
    objective(data, generators(), 0)[0].backward()
    assert float(autoencoder.encoder.conv_in.weight.grad.norm()) > 1e-4
    assert all(p.grad is not None for p in autoencoder.parameters())
    autoencoder.zero_grad()
    AutoencoderVQObjective(autoencoder)(data, generators(), 0)[0].backward()
    with torch.no_grad():
        used = autoencoder.quantize(autoencoder.encode(data["image"]).mode())[1].unique()
    moved = autoencoder.codebook.grad.abs().sum(dim=1).nonzero().flatten()
    assert torch.equal(moved, used)


def test_the_discriminator_joins(autoencoder: AutoencoderVQ) -> None:
    torch.manual_seed(1)
    objective = AutoencoderVQObjective(
        autoencoder,
        discriminator=PatchDiscriminator(channels=8, layers=2),
        weights=AutoencoderVQLossWeights(adversarial_start=3),
    )
    data = batch(4, 32)
    assert objective(data, generators(4), 2)[1]["adaptive_weight"] == 0
    loss, metrics = objective(data, generators(4), 3)
    assert metrics["adaptive_weight"] > 0
    loss.backward()
    assert all(p.grad is not None for p in objective.parameters())
    assert len(objective.parameter_groups()) == 2


def test_bfloat16_gives_nearly_the_same_terms(autoencoder: AutoencoderVQ) -> None:
    torch.nn.init.normal_(autoencoder.codebook)
    objective, data = AutoencoderVQObjective(autoencoder), batch(4, 32)
    wanted = objective(data, generators(4), 0)[1]
    with torch.autocast("cpu", torch.bfloat16):
        loss, got = objective(data, generators(4), 0)
    loss.backward()
    for name, value in got.items():
        assert value.dtype == torch.float32
        assert float(value) == pytest.approx(float(wanted[name]), rel=0.06), name


def test_perplexity() -> None:
    assert float(perplexity(torch.full((2, 3, 3), 5))) == pytest.approx(1)
    assert float(perplexity(torch.arange(16).reshape(1, 4, 4))) == pytest.approx(16)
    assert float(perplexity(torch.tensor([[[0, 0], [7, 7]]]))) == pytest.approx(2)


def test_a_tiny_autoencoder_trains(autoencoder: AutoencoderVQ, tmp_path: Path) -> None:
    before = autoencoder.codebook.detach().clone()
    options = {"samples": pictures(8, 16), "batch_size": 4, "learning_rate": 4e-3, "warmup": 0}
    run(tmp_path, AutoencoderVQObjective(autoencoder), steps=10, save_every=10, **options)
    loss = losses(tmp_path)
    assert sum(loss[-4:]) < 0.9 * sum(loss[:4])
    assert rows(tmp_path)[-1]["perplexity"] > 1.5
    assert not torch.equal(autoencoder.codebook, before)


def test_cached_latents_have_no_noise(autoencoder: AutoencoderVQ, tmp_path: Path) -> None:
    dataset = pictures(3, 16)
    cached = CachedLatents(dataset, autoencoder, tmp_path / "latents.npy")
    with torch.no_grad():
        h = autoencoder.encode(dataset[1]["image"][None]).mode()
    sample = cached[1]
    assert torch.allclose(sample["mean"], h[0], atol=1e-6)
    again = DiagonalGaussian(sample["mean"][None], sample["logvar"][None]).sample(torch.Generator())
    assert torch.equal(again[0], sample["mean"])
