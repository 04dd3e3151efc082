"""The diffusion loss: against other people's formulas, and what mathematics says of it."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from support.configs import TINY
from support.training_batches import batch, generators
from support.training_runs import diffusion
from torch import Tensor, nn

from ldm_core import build
from ldm_core.config import NoiseScheduleConfig
from ldm_core.noise import randn
from ldm_core.noise_schedule import NoiseSchedule, zero_terminal_snr
from ldm_core.training import DiffusionObjective
from ldm_core.training.data_order import noise_generators
from ldm_core.training.diffusion_loss import Target, min_snr_weight

SCHEDULE = NoiseSchedule()


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
        loss, metrics = objective(data, generators(64), 0)
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
    loss, _ = objective(data, generators(3), 0)

    again = generators(3)
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
    whole, _ = objective(data, generators(4), 0)
    parts = []
    for k in range(4):
        one = {"image": data["image"][k : k + 1], "text": data["text"][k : k + 1]}
        parts.append(objective(one, generators(4)[k : k + 1], 0)[0])
    torch.testing.assert_close(whole, torch.stack(parts).mean(), rtol=1e-5, atol=0)


def test_captions_are_dropped_and_chosen_in_their_shares() -> None:
    objective = diffusion(condition_dropout=0.25)
    chosen = objective._captions([("one", "two", "three")] * 4000, noise_generators(1, range(4000)))
    shares = {text: chosen.count(text) / 4000 for text in ("", "one", "two", "three")}
    assert shares == pytest.approx(dict.fromkeys(shares, 0.25), abs=0.03)
    assert objective._captions([()], generators(1)) == [""]


def test_cached_latents_give_the_loss_of_pictures() -> None:
    objective, data = diffusion(), batch()
    posterior = objective.model.autoencoder.encode(data["image"])
    cached = {"mean": posterior.mean.detach(), "logvar": posterior.logvar.detach(), "text": data["text"]}
    with torch.no_grad():
        a, b = (objective(each, generators(), 0)[0] for each in (data, cached))
    torch.testing.assert_close(a, b, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
@pytest.mark.parametrize("jointly", [False, True])
def test_what_learns_gets_gradients_and_nothing_else(kind: str, jointly: bool) -> None:
    """All that the optimizer and the other processes expect gradients of, none of what stays."""
    torch.manual_seed(0)
    model = build(TINY[kind])
    objective = DiffusionObjective(model, train_text_encoder=jointly, condition_dropout=0.0)
    objective(batch(), generators(), 0)[0].backward()
    assert all((p.grad is not None) == p.requires_grad for p in objective.parameters())
    assert all(p.grad is not None for p in model.unet.parameters())
    assert all(p.grad is None for p in model.autoencoder.parameters())
    trained = [name for name, p in model.text_encoder.named_parameters() if p.grad is not None]
    assert bool(trained) == jointly
    unused = ("text_projection", "logit_scale", "blocks.2.") if kind == "sd2" else ()
    assert not [name for name in trained if name.startswith(unused or "-")]


def test_models_that_do_not_fit_are_refused() -> None:
    model = build(TINY["sd1"])
    with pytest.raises(ValueError, match="9 input channels, 4 output channels"):
        DiffusionObjective(build(TINY["sd1-inpaint"]))
    with pytest.raises(ValueError, match=r"unet: expected weights in float32 .*, got torch\.float16"):
        DiffusionObjective(build(TINY["sd1"]).to(dtype=torch.float16))
    with pytest.raises(ValueError, match="target must be"):
        DiffusionObjective(model, target="noise")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="condition_dropout must be in"):
        DiffusionObjective(model, condition_dropout=1.5)
    with pytest.raises(ValueError, match="min_snr_gamma must be positive"):
        DiffusionObjective(model, min_snr_gamma=0)
    with pytest.raises(ValueError, match=r"unet is not a torch\.nn\.Module"):
        DiffusionObjective(dataclasses.replace(model, unet=lambda x, t, context: x))
    ends_in_noise = dataclasses.replace(
        model, noise_schedule=NoiseSchedule(betas=zero_terminal_snr(model.noise_schedule.betas))
    )
    with pytest.raises(ValueError, match="use target='v'"):
        DiffusionObjective(ends_in_noise)
    with pytest.warns(
        UserWarning, match="training with target .v., but model.config.prediction, which sampling uses, is"
    ):
        objective = DiffusionObjective(ends_in_noise, target="v", min_snr_gamma=5.0)
    loss, _ = objective(batch(), generators(), 0)
    assert bool(loss.isfinite())
