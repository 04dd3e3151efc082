"""The objectives: against other people's formulas, and what mathematics says of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY
from torch import Tensor, nn
from training_runs import diffusion, pictures, run

from ldm_core.autoencoder import AutoencoderKL
from ldm_core.config import NoiseScheduleConfig
from ldm_core.model import build
from ldm_core.noise_schedule import NoiseSchedule, zero_terminal_snr
from ldm_core.random import randn
from ldm_core.training import (
    AutoencoderObjective,
    AutoencoderWeights,
    DiffusionObjective,
    PatchDiscriminator,
    TensorSamples,
    start_posterior,
)
from ldm_core.training.autoencoder_loss import multiscale_gradient_loss
from ldm_core.training.diffusion_loss import Target, min_snr_weight
from ldm_core.training.discriminator import hinge_loss
from ldm_core.training.order import noise_streams
from ldm_core.training.samples import collate

SCHEDULE = NoiseSchedule()


def batch(count: int = 2, size: int = 16) -> dict[str, Any]:
    samples: TensorSamples = pictures(count, size)
    return collate([samples[i] for i in range(count)])


def streams(count: int = 2, seed: int = 0) -> list[torch.Generator]:
    return noise_streams(seed, range(count))


# --- zero terminal SNR and min-SNR ---


def test_zero_terminal_snr_is_diffusers() -> None:
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    betas = zero_terminal_snr(SCHEDULE.betas)
    torch.testing.assert_close(betas, rescale_zero_terminal_snr(SCHEDULE.betas.clone()), rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", ["scaled_linear", "linear", "cosine"])
def test_zero_terminal_snr_leaves_nothing_at_the_end_and_the_start_alone(kind: Any) -> None:
    before = NoiseSchedule(NoiseScheduleConfig(beta_schedule=kind))
    after = NoiseSchedule(betas=zero_terminal_snr(before.betas))
    assert after.alphas_cumprod[-1] == 0
    assert after.alphas_cumprod[0] == pytest.approx(float(before.alphas_cumprod[0]), rel=1e-12)
    assert bool((after.alphas_cumprod.diff() < 0).all())
    # an affine map of sqrt(alphas_cumprod), whose second differences therefore keep their ratios
    old, new = before.alphas_cumprod.sqrt(), after.alphas_cumprod.sqrt()
    ratio = (new[0] - new[500]) / (old[0] - old[500])
    torch.testing.assert_close(new[0] - new, ratio * (old[0] - old), rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="two timesteps or more"):
        zero_terminal_snr(before.betas[:1])


def test_min_snr_weights_are_one_weight_of_x0() -> None:
    """Each error, brought to x_0 and weighted by min(SNR, gamma), is the target's own weighted error."""
    generator = torch.Generator().manual_seed(0)
    for t in (0, 1, 250, 700, 999):
        a, s = SCHEDULE.signal_and_noise(t)
        x0, eps, wrong = torch.randn(3, 50, generator=generator, dtype=torch.float64)
        x = a * x0 + s * eps
        alpha_cumprod = SCHEDULE.alphas_cumprod[t]
        weight = {kind: float(min_snr_weight(alpha_cumprod, 5.0, kind)) for kind in get_args(Target)}
        expected = min((a / s) ** 2, 5.0) * (wrong - x0).square().mean()
        others = {"x0": (wrong, x0), "eps": ((x - a * wrong) / s, eps)}
        others["v"] = (a * others["eps"][0] - s * wrong, a * eps - s * x0)
        for target, (guess, truth) in others.items():
            loss = weight[target] * (guess - truth).square().mean()
            assert float(loss) == pytest.approx(float(expected), rel=1e-9), target


def test_min_snr_weights_at_pure_noise_are_numbers() -> None:
    schedule = NoiseSchedule(betas=zero_terminal_snr(SCHEDULE.betas))
    for target, last in (("eps", 1.0), ("v", 0.0), ("x0", 0.0)):
        weight = min_snr_weight(schedule.alphas_cumprod, 5.0, target)  # type: ignore[arg-type]
        assert bool(weight.isfinite().all())
        assert weight[-1] == last


# --- diffusion ---


class Oracle(nn.Module):
    """Knows the pictures, all of one latent, and so answers without an error, or with one of size 1."""

    def __init__(self, z0: Tensor, schedule: NoiseSchedule, target: str, error: float) -> None:
        super().__init__()
        self.z0, self.schedule, self.target, self.error = z0, schedule, target, error
        self.weight = nn.Parameter(torch.zeros(()))
        self.times: list[int] = []
        self.contexts: list[Tensor] = []

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        rows = []
        for one, z0, time in zip(x, self.z0, t.tolist()):
            self.times.append(time)
            eps = self.schedule.eps_from_x0(one, z0, time)
            truth = {"x0": z0, "eps": eps, "v": self.schedule.v_from_eps_x0(eps, z0, time)}[self.target]
            rows.append(truth + self.error)
        self.contexts.append(context)
        return torch.stack(rows) + self.weight


@pytest.mark.parametrize("target", ["eps", "v", "x0"])
@pytest.mark.parametrize("gamma", [None, 5.0])
def test_the_loss_is_zero_for_who_knows_and_the_weight_for_who_errs_by_one(
    target: Any, gamma: float | None
) -> None:
    model = build(dataclasses.replace(TINY["sd1"], prediction=target))
    mean = torch.randn(64, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    data = {"mean": mean, "logvar": torch.full_like(mean, -100.0), "text": [("a",)] * 64}
    z0 = mean * model.config.latent_scale
    for error in (0.0, 1.0):
        oracle = Oracle(z0, model.noise_schedule, target, error)
        objective = DiffusionObjective(dataclasses.replace(model, unet=oracle), min_snr_gamma=gamma)
        loss, metrics = objective(data, streams(64), 0)
        weights = torch.ones(1000, dtype=torch.float64)
        if gamma is not None:
            weights = min_snr_weight(model.noise_schedule.alphas_cumprod, gamma, target)
        expected = error * float(weights[oracle.times].mean())
        # eps at the first timesteps is a difference divided by s = 0.03 and less
        assert float(loss.detach()) == pytest.approx(expected, rel=1e-3, abs=1e-4)
        assert float(metrics["error"]) == pytest.approx(error, rel=1e-3, abs=1e-4)
    assert len(set(oracle.times)) > 50
    assert min(oracle.times) < 100
    assert max(oracle.times) > 900


def test_the_loss_of_eps_is_diffusers() -> None:
    """The same latents, noise and timesteps through diffusers' forward process."""
    from diffusers import DDPMScheduler

    objective = diffusion(condition_dropout=0.0)
    model, data = objective.model, batch(3)
    loss, _ = objective(data, streams(3), 0)

    again = streams(3)
    t = torch.tensor([int(torch.rand(1, generator=stream).item() * 1000) for stream in again])
    captions = [text[0] for text in data["text"]]
    for stream in again:
        torch.rand(2, generator=stream)  # what drops and chooses captions
    with torch.no_grad():
        z0 = model.encode_image(data["image"], again)
        noise = randn(z0.shape, again)
        scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
        predicted = model.unet(
            scheduler.add_noise(z0, noise, t), t, model.text_encoder(model.tokenizer(captions))
        )
    assert float(loss.detach()) == pytest.approx(float(F.mse_loss(predicted, noise)), rel=1e-5)
    assert not any(p.requires_grad and p.grad is not None for p in model.autoencoder.parameters())


def test_a_sample_meets_the_same_noise_in_any_batch() -> None:
    objective, data = diffusion(), batch(4)
    whole, _ = objective(data, streams(4), 0)
    parts = []
    for k in range(4):
        one = {"image": data["image"][k : k + 1], "text": data["text"][k : k + 1]}
        parts.append(objective(one, streams(4)[k : k + 1], 0)[0])
    torch.testing.assert_close(whole, torch.stack(parts).mean(), rtol=1e-5, atol=0)


def test_captions_are_dropped_and_chosen_in_their_shares() -> None:
    objective = diffusion(condition_dropout=0.25)
    chosen = objective._captions([("one", "two", "three")] * 4000, noise_streams(1, range(4000)))
    shares = {text: chosen.count(text) / 4000 for text in ("", "one", "two", "three")}
    assert shares == pytest.approx(dict.fromkeys(shares, 0.25), abs=0.03)
    assert objective._captions([()], streams(1)) == [""]


def test_cached_latents_give_the_loss_of_pictures() -> None:
    objective, data = diffusion(), batch()
    posterior = objective.model.autoencoder.encode(data["image"])
    cached = {"mean": posterior.mean.detach(), "logvar": posterior.logvar.detach(), "text": data["text"]}
    with torch.no_grad():
        a, b = (objective(each, streams(), 0)[0] for each in (data, cached))
    torch.testing.assert_close(a, b, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
@pytest.mark.parametrize("jointly", [False, True])
def test_what_learns_gets_gradients_and_nothing_else(kind: str, jointly: bool) -> None:
    """All that the optimizer and the other processes expect gradients of, none of what stays."""
    torch.manual_seed(0)
    model = build(TINY[kind])
    objective = DiffusionObjective(model, train_text_encoder=jointly, condition_dropout=0.0)
    objective(batch(), streams(), 0)[0].backward()
    assert all((p.grad is not None) == p.requires_grad for p in objective.parameters())
    assert all(p.grad is not None for p in model.unet.parameters())
    assert all(p.grad is None for p in model.autoencoder.parameters())
    trained = [name for name, p in model.text_encoder.named_parameters() if p.grad is not None]
    assert bool(trained) == jointly
    unused = ("text_projection", "logit_scale", "blocks.2.") if kind == "sd2" else ()
    assert not [name for name in trained if name.startswith(unused or "-")]


def test_models_that_do_not_fit_are_refused() -> None:
    model = build(TINY["sd1"])
    with pytest.raises(ValueError, match="takes 9 channels for 4"):
        DiffusionObjective(build(TINY["sd1-inpaint"]))
    with pytest.raises(ValueError, match=r"unet: expected weights in float32 to train, got torch\.float16"):
        DiffusionObjective(build(TINY["sd1"]).to(dtype=torch.float16))
    with pytest.raises(ValueError, match="target must be"):
        DiffusionObjective(model, target="noise")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="condition_dropout must be a share"):
        DiffusionObjective(model, condition_dropout=1.5)
    with pytest.raises(ValueError, match="min_snr_gamma must be positive"):
        DiffusionObjective(model, min_snr_gamma=0)
    with pytest.raises(ValueError, match="unet is no torch module"):
        DiffusionObjective(dataclasses.replace(model, unet=lambda x, t, context: x))
    ends_in_noise = dataclasses.replace(
        model, noise_schedule=NoiseSchedule(betas=zero_terminal_snr(model.noise_schedule.betas))
    )
    with pytest.raises(ValueError, match="use target='v'"):
        DiffusionObjective(ends_in_noise)
    with pytest.warns(
        UserWarning, match="trains the prediction of v, but the model is sampled, and saved, as one of"
    ):
        objective = DiffusionObjective(ends_in_noise, target="v", min_snr_gamma=5.0)
    loss, _ = objective(batch(), streams(), 0)
    assert bool(loss.isfinite())


# --- the autoencoder ---


@pytest.fixture
def autoencoder() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(TINY["sd1"].autoencoder)


def test_terms_are_the_papers(autoencoder: AutoencoderKL) -> None:
    weights = AutoencoderWeights(perceptual=0.5, kl=0.01, l1_start=10)
    objective, data = AutoencoderObjective(autoencoder, weights=weights), batch()
    images = data["image"]
    with torch.no_grad():
        posterior = autoencoder.encode(images)
        decoded = autoencoder.decode(posterior.sample(streams()))
        kl = torch.distributions.kl_divergence(
            torch.distributions.Normal(posterior.mean, posterior.std), torch.distributions.Normal(0.0, 1.0)
        )
        rest = 0.5 * multiscale_gradient_loss(images, decoded) + 0.01 * kl.sum() / images.numel()
        for step, error in ((9, F.mse_loss(decoded, images)), (10, F.l1_loss(decoded, images))):
            loss, metrics = objective(data, streams(), step)
            assert float(loss) == pytest.approx(float(error + rest), rel=1e-5)
            assert float(metrics["mse"]) == pytest.approx(float(F.mse_loss(decoded, images)), rel=1e-5)


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
    objective(batch(), streams(), 0)[0].backward()
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
    weights = AutoencoderWeights(adversarial=0.5, adversarial_start=3, perceptual=1.0)
    objective, data = (
        AutoencoderObjective(autoencoder, discriminator=discriminator, weights=weights),
        batch(4, 32),
    )
    _, metrics = objective(data, streams(4), 3)
    objective(data, streams(4), 3)[0].backward()
    got = {name: p.grad.clone() for name, p in objective.named_parameters()}  # type: ignore[union-attr]
    objective.zero_grad()

    # CompVis's: optimizer 0 with the discriminator as it is, and optimizer 1 on a detached reconstruction
    images, last = data["image"], autoencoder.decoder.conv_out.weight
    posterior = autoencoder.encode(images)
    decoded = autoencoder.decode(posterior.sample(streams(4)))
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
        weights=AutoencoderWeights(adversarial_start=0),
    )
    data = batch(4, 32)
    wanted = objective(data, streams(4), 0)[1]
    with torch.autocast("cpu", torch.bfloat16):
        loss, got = objective(data, streams(4), 0)
    loss.backward()
    for name, value in got.items():
        assert value.dtype == torch.float32
        # 8 bits, and opinions of a new discriminator that are differences of nearly equal numbers
        assert float(value) == pytest.approx(float(wanted[name]), rel=0.05, abs=0.02), name
    assert all(bool(p.grad.isfinite().all()) for p in objective.parameters())  # type: ignore[union-attr]


def assert_near(a: Tensor, b: Tensor) -> None:
    assert float((a - b).norm()) <= 1e-4 * float(b.norm()) + 1e-9


def test_the_discriminator_waits_for_its_start(autoencoder: AutoencoderKL) -> None:
    torch.manual_seed(1)
    discriminator = PatchDiscriminator(channels=8, layers=2)
    objective = AutoencoderObjective(
        autoencoder, discriminator=discriminator, weights=AutoencoderWeights(adversarial_start=5)
    )
    alone = AutoencoderObjective(autoencoder)
    data = batch(2, 32)
    for step in (0, 4):
        loss, metrics = objective(data, streams(), step)
        assert float(loss.detach()) == float(alone(data, streams(), step)[0].detach())
        assert metrics["adaptive_weight"] == 0
    loss.backward()
    assert all(p.grad is not None and not p.grad.any() for p in discriminator.parameters())
    objective.zero_grad()
    loss, metrics = objective(data, streams(), 5)
    loss.backward()
    assert metrics["adaptive_weight"] > 0
    kernels = [p for p in discriminator.parameters() if p.ndim == 4]  # of a bias, both halves may cancel
    assert all(p.grad is not None and p.grad.any() for p in kernels)
    assert len(objective.parameter_groups()) == 2
    with pytest.raises(ValueError, match="the discriminator cannot look at pictures of 16x16 pixels"):
        AutoencoderObjective(autoencoder, discriminator=PatchDiscriminator(layers=3))(
            batch(2, 16), streams(), 0
        )


def test_a_waiting_discriminator_starts_as_if_it_were_new(autoencoder: AutoencoderKL, tmp_path: Path) -> None:
    """Zero gradients would advance Adam's count of steps, so that its first real ones would be too large."""
    discriminator = PatchDiscriminator(channels=8, layers=1)
    start = {name: p.detach().clone() for name, p in discriminator.named_parameters()}
    weights = AutoencoderWeights(adversarial_start=3)
    objective = AutoencoderObjective(autoencoder, discriminator=discriminator, weights=weights)
    options: dict[str, Any] = {"samples": pictures(8, 16), "batch_size": 2, "warmup": 0, "weight_decay": 0.1}
    run(tmp_path, objective, steps=3, **options)
    assert all(torch.equal(p, start[name]) for name, p in discriminator.named_parameters())
    with pytest.warns(UserWarning, match="with steps 5"):
        trainer = run(tmp_path, objective, steps=5, **options)
    counts = {float(trainer._optimizer.state[p]["step"]) for p in discriminator.parameters()}
    assert counts == {2.0}
    assert not any(torch.equal(p, start[name]) for name, p in discriminator.named_parameters() if p.ndim == 4)


def test_a_posterior_starts_narrow(autoencoder: AutoencoderKL) -> None:
    start_posterior(autoencoder)
    with torch.no_grad():
        posterior = autoencoder.encode(batch()["image"])
    assert float(posterior.logvar.mean()) == pytest.approx(-6, abs=0.5)
    assert float(posterior.mean.abs().mean()) < 2
