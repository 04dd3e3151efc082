"""The autoencoder's loss: reconstruction, perceptual term, KL and discriminator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.configs import TINY
from support.training_batches import batch, generators
from support.training_runs import pictures, run
from torch import Tensor, nn

from ldm_core.autoencoder import AutoencoderKL
from ldm_core.training import AutoencoderLossWeights, AutoencoderObjective, PatchDiscriminator, init_logvar
from ldm_core.training.autoencoder_loss import multiscale_gradient_loss
from ldm_core.training.discriminator import hinge_loss

# --- the autoencoder ---


@pytest.fixture
def autoencoder() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(TINY["sd1"].autoencoder)


def test_terms_are_the_papers(autoencoder: AutoencoderKL) -> None:
    weights = AutoencoderLossWeights(perceptual=0.5, kl=0.01, l1_start=10)
    objective, data = AutoencoderObjective(autoencoder, weights=weights), batch()
    images = data["image"]
    with torch.no_grad():
        posterior = autoencoder.encode(images)
        decoded = autoencoder.decode(posterior.sample(generators()))
        kl = torch.distributions.kl_divergence(
            torch.distributions.Normal(posterior.mean, posterior.std), torch.distributions.Normal(0.0, 1.0)
        )
        rest = 0.5 * multiscale_gradient_loss(images, decoded) + 0.01 * kl.sum() / images.numel()
        for step, error in ((9, F.mse_loss(decoded, images)), (10, F.l1_loss(decoded, images))):
            loss, metrics = objective(data, generators(), step)
            assert float(loss) == pytest.approx(float(error + rest), rel=1e-5)
            assert float(metrics["mse"]) == pytest.approx(float(F.mse_loss(decoded, images)), rel=1e-5)


def test_a_frozen_encoder_keeps_its_latents(autoencoder: AutoencoderKL, tmp_path: Path) -> None:
    objective = AutoencoderObjective(autoencoder, train_encoder=False)
    images, before = batch()["image"], {n: p.clone() for n, p in autoencoder.state_dict().items()}
    with torch.no_grad():
        latents = autoencoder.encode(images).mode()
    run(tmp_path, objective, steps=2)
    with torch.no_grad():
        assert torch.equal(autoencoder.encode(images).mode(), latents)
    changed = {n.split(".")[0] for n, p in autoencoder.state_dict().items() if not torch.equal(p, before[n])}
    assert changed == {"decoder", "post_quant_conv"}
    whole = AutoencoderObjective(autoencoder, weights=AutoencoderLossWeights(kl=0.0))
    assert torch.equal(
        AutoencoderObjective(autoencoder, train_encoder=False)(batch(), generators(), 0)[0],
        whole(batch(), generators(), 0)[0],
    )


def test_gradient_loss_sees_edges_and_not_levels() -> None:
    images = torch.rand(2, 3, 16, 16)
    assert multiscale_gradient_loss(images, images) == 0
    assert multiscale_gradient_loss(images, images + 0.3) < 1e-6
    edge = torch.zeros(1, 3, 16, 16)
    edge[..., 8:] = 1
    # one column of 15 at full size, of 7 and of 3 below, half of the six terms, each column's difference 1
    expected = (1 / 15 + 1 / 7 + 1 / 3) / 6
    assert float(multiscale_gradient_loss(torch.zeros(1, 3, 16, 16), edge)) == pytest.approx(expected)


def test_features_of_a_frozen_network_are_compared_by_direction(autoencoder: AutoencoderKL) -> None:
    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 7, 3, stride=2)

        def forward(self, images: Tensor) -> list[Tensor]:
            first = self.first(images)
            return [first, self.second(first.relu())]

    features = Features()
    objective = AutoencoderObjective(autoencoder, features=features)
    a, b = torch.rand(2, 2, 3, 16, 16)
    expected = [(2 - 2 * F.cosine_similarity(x, y, dim=1)).mean() for x, y in zip(features(a), features(b))]
    assert float(objective.perceptual(a, b)) == pytest.approx(float(sum(expected) / 2), rel=1e-4)
    assert float(objective.perceptual(a, a)) == 0
    objective(batch(), generators(), 0)[0].backward()
    assert all(p.grad is None for p in features.parameters())
    assert not any("first" in name for name, _ in objective.named_parameters())


def test_the_frozen_network_of_features_stays_as_it_is(autoencoder: AutoencoderKL) -> None:
    """Modules are in training mode by default, where norms learn statistics and dropout draws."""

    class Features(nn.Sequential):
        def forward(self, images: Tensor) -> list[Tensor]:
            return [super().forward(images)]

    features = Features(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Dropout(0.5))
    objective = AutoencoderObjective(autoencoder, features=features)
    before = {name: value.clone() for name, value in features.state_dict().items()}
    images = torch.rand(2, 3, 16, 16)
    assert float(objective.perceptual(images, images)) == 0
    assert all(torch.equal(value, before[name]) for name, value in features.state_dict().items())


def test_the_discriminator_is_pix2pixs() -> None:
    """The layers of Isola et al.'s appendix: C64-C128-C256-C512, 4x4, stride 2 but in the last two."""
    network = PatchDiscriminator()
    shapes = [
        (m.in_channels, m.out_channels, m.kernel_size[0], m.stride[0], m.bias is not None)
        for m in network
        if isinstance(m, nn.Conv2d)
    ]
    assert shapes == [
        (3, 64, 4, 2, True), (64, 128, 4, 2, False), (128, 256, 4, 2, False),
        (256, 512, 4, 1, False), (512, 1, 4, 1, True),
    ]  # fmt: skip
    pair = PatchDiscriminator(in_channels=6)  # pix2pix judges two pictures at once; it prints 2.769 M
    assert sum(p.numel() for p in pair.parameters()) == 2_768_705
    images = torch.zeros(1, 3, 128, 128, requires_grad=True)
    plain = nn.Sequential(*(m for m in network if not isinstance(m, nn.BatchNorm2d)))
    logits = plain(images)
    logits[0, 0, 7, 7].backward()
    seen = images.grad.abs().sum(dim=(0, 1)).nonzero()  # type: ignore[union-attr]
    assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [70, 70]


def test_hinge_loss() -> None:
    assert hinge_loss(torch.tensor([2.0, 1.0]), torch.tensor([-1.0, -5.0])) == 0
    assert hinge_loss(torch.tensor([0.0, 0.5]), torch.tensor([0.0, 1.0])) == pytest.approx((0.75 + 1.5) / 2)


def test_players_learn_from_their_own_terms_alone(autoencoder: AutoencoderKL) -> None:
    """One backward pass gives each the gradients that CompVis's two passes give."""
    torch.manual_seed(1)
    discriminator = PatchDiscriminator(channels=8, layers=2)
    weights = AutoencoderLossWeights(adversarial=0.5, adversarial_start=3, perceptual=1.0)
    objective, data = (
        AutoencoderObjective(autoencoder, discriminator=discriminator, weights=weights),
        batch(4, 32),
    )
    _, metrics = objective(data, generators(4), 3)
    objective(data, generators(4), 3)[0].backward()
    got = {name: p.grad.clone() for name, p in objective.named_parameters()}  # type: ignore[union-attr]
    objective.zero_grad()

    # CompVis's: optimizer 0 with the discriminator as it is, and optimizer 1 on a detached reconstruction
    images, last = data["image"], autoencoder.decoder.conv_out.weight
    posterior = autoencoder.encode(images)
    decoded = autoencoder.decode(posterior.sample(generators(4)))
    nll = F.l1_loss(decoded, images) + multiscale_gradient_loss(images, decoded)
    generator = -discriminator(decoded).mean()
    norms = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (nll, generator)]
    adaptive = (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4).detach()
    assert float(metrics["adaptive_weight"]) == pytest.approx(float(adaptive), rel=1e-4)
    first = nll + 1e-6 * posterior.kl().sum() / images.numel() + 0.5 * adaptive * generator
    wanted = torch.autograd.grad(first, list(autoencoder.parameters()))
    for (name, _), gradient in zip(autoencoder.named_parameters(), wanted):
        assert_near(got[f"autoencoder.{name}"], gradient)
    real, fake = discriminator(images), discriminator(decoded.detach())
    second = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    for (name, _), gradient in zip(
        discriminator.named_parameters(), torch.autograd.grad(second, list(discriminator.parameters()))
    ):
        assert_near(got[f"discriminator.{name}"], gradient)


def test_bfloat16_gives_nearly_the_same_terms(autoencoder: AutoencoderKL) -> None:
    torch.manual_seed(1)
    objective = AutoencoderObjective(
        autoencoder,
        discriminator=PatchDiscriminator(channels=8, layers=2),
        weights=AutoencoderLossWeights(adversarial_start=0),
    )
    data = batch(4, 32)
    wanted = objective(data, generators(4), 0)[1]
    with torch.autocast("cpu", torch.bfloat16):
        loss, got = objective(data, generators(4), 0)
    loss.backward()
    for name, value in got.items():
        assert value.dtype == torch.float32
        # 8 bits, and opinions of a new discriminator that are differences of nearly equal numbers
        assert float(value) == pytest.approx(float(wanted[name]), rel=0.06, abs=0.02), name
    assert all(bool(p.grad.isfinite().all()) for p in objective.parameters())  # type: ignore[union-attr]


def assert_near(a: Tensor, b: Tensor) -> None:
    assert float((a - b).norm()) <= 1e-4 * float(b.norm()) + 1e-9


def test_the_discriminator_waits_for_its_start(autoencoder: AutoencoderKL) -> None:
    torch.manual_seed(1)
    discriminator = PatchDiscriminator(channels=8, layers=2)
    objective = AutoencoderObjective(
        autoencoder, discriminator=discriminator, weights=AutoencoderLossWeights(adversarial_start=5)
    )
    alone = AutoencoderObjective(autoencoder)
    data = batch(2, 32)
    for step in (0, 4):
        loss, metrics = objective(data, generators(), step)
        assert float(loss.detach()) == float(alone(data, generators(), step)[0].detach())
        assert metrics["adaptive_weight"] == 0
    loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in discriminator.parameters())
    objective.zero_grad()
    loss, metrics = objective(data, generators(), 5)
    loss.backward()
    assert metrics["adaptive_weight"] > 0
    kernels = [p for p in discriminator.parameters() if p.ndim == 4]  # of a bias, both halves may cancel
    assert all(p.grad is not None and p.grad.any() for p in kernels)
    assert len(objective.parameter_groups()) == 2
    with pytest.raises(ValueError, match="the discriminator cannot process images of 16x16 pixels"):
        AutoencoderObjective(autoencoder, discriminator=PatchDiscriminator(layers=3))(
            batch(2, 16), generators(), 0
        )


def test_a_waiting_discriminator_starts_as_if_it_were_new(autoencoder: AutoencoderKL, tmp_path: Path) -> None:
    """Zero gradients would advance Adam's count of steps, so that its first real ones would be too large."""
    discriminator = PatchDiscriminator(channels=8, layers=1)
    start = {name: p.detach().clone() for name, p in discriminator.named_parameters()}
    weights = AutoencoderLossWeights(adversarial_start=3)
    objective = AutoencoderObjective(autoencoder, discriminator=discriminator, weights=weights)
    options: dict[str, Any] = {"samples": pictures(8, 16), "batch_size": 2, "warmup": 0, "weight_decay": 0.1}
    run(tmp_path, objective, steps=3, **options)
    assert all(torch.equal(p, start[name]) for name, p in discriminator.named_parameters())
    with pytest.warns(UserWarning, match="with steps=5"):
        trainer = run(tmp_path, objective, steps=5, **options)
    counts = {float(trainer._optimizer.state[p]["step"]) for p in discriminator.parameters()}
    assert counts == {2.0}
    assert not any(torch.equal(p, start[name]) for name, p in discriminator.named_parameters() if p.ndim == 4)


def test_a_posterior_starts_narrow(autoencoder: AutoencoderKL) -> None:
    init_logvar(autoencoder)
    with torch.no_grad():
        posterior = autoencoder.encode(batch()["image"])
    assert float(posterior.logvar.mean()) == pytest.approx(-6, abs=0.5)
    assert float(posterior.mean.abs().mean()) < 2
