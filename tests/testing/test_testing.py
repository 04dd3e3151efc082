"""`ldm_core.testing`: good parts keep their contracts, the library's own and others; and the error itself."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.configs import SMALL
from support.contracts import AUTOENCODER, AUTOENCODER_VQ, TEXT, UNET, told
from torch import Tensor

from ldm_core.attention import BACKENDS
from ldm_core.autoencoder import AutoencoderKL, AutoencoderVQ
from ldm_core.autoencoder.tiling import TiledAutoencoder
from ldm_core.clip.tokenizer import CLIPTokenizer
from ldm_core.config import SD1, TextEncoderConfig
from ldm_core.guidance import ClassifierFreeGuidance
from ldm_core.model import LatentDiffusion
from ldm_core.nn.cpu import sdpa_runs_in_bfloat16
from ldm_core.noise_schedule import NoiseSchedule
from ldm_core.schedulers import DDIM, DDPM, PNDM, Step, spaced_pairs
from ldm_core.testing import (
    ContractError,
    check_attention,
    check_autoencoder,
    check_guidance,
    check_scheduler,
    check_text_encoder,
    check_tokenizer,
    check_unet,
)
from ldm_core.text_encoder import CLIPTextEncoder
from ldm_core.unet import UNet

# --- the library's own parts ----------------------------------------------------------------------------


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("scheduler", "stochastic"),
    [
        (DDIM(), False),
        (DDIM(spacing="trailing", set_alpha_to_one=True), False),
        (DDIM(eta=0.5), True),
        (DDIM(eta=1.0, spacing="linspace"), True),
        (DDPM(), True),
        (DDPM(variance="fixed_large", spacing="trailing"), True),
        (PNDM(), False),
        (PNDM(warmup="runge_kutta"), False),
        (PNDM(warmup="runge_kutta", spacing="linspace"), False),
    ],
)
def test_own_schedulers(scheduler: Any, stochastic: bool) -> None:
    check_scheduler(scheduler, stochastic=stochastic)


def test_a_scheduler_on_another_schedule() -> None:
    check_scheduler(DDIM(), NoiseSchedule(replace(SD1.noise_schedule, beta_schedule="cosine")))


@pytest.mark.parametrize("name", [name for name in BACKENDS if name != "triton"])  # a GPU's
def test_own_attention(name: str) -> None:
    if name == "sdpa" and not sdpa_runs_in_bfloat16():
        pytest.skip("PyTorch's kernel needs AVX-512 on this CPU, and ATEN_CPU_CAPABILITY forbids it")
    check_attention(BACKENDS[name], gradients=True)


@pytest.mark.slow  # networks of some size
@pytest.mark.parametrize("name", ["sd1", "sd2"])
def test_own_networks_with_random_weights(name: str) -> None:
    config = replace(SMALL[name].unet, channel_mult=(1, 2), num_res_blocks=1)
    torch.manual_seed(0)
    check_unet(UNet(config), config)
    check_text_encoder(CLIPTextEncoder(SMALL[name].text_encoder), SMALL[name].text_encoder)
    check_autoencoder(AutoencoderKL(AUTOENCODER), AUTOENCODER)


def test_the_vq_autoencoder() -> None:
    torch.manual_seed(0)
    autoencoder = AutoencoderVQ(AUTOENCODER_VQ)
    torch.nn.init.normal_(autoencoder.codebook)
    check_autoencoder(autoencoder, AUTOENCODER_VQ)


def test_the_tiled_autoencoder() -> None:
    torch.manual_seed(0)
    check_autoencoder(TiledAutoencoder(AutoencoderKL(AUTOENCODER), tile=2, overlap=1), AUTOENCODER)


def test_a_network_with_class_labels_is_checked_as_a_lambda() -> None:
    config = replace(UNET, adm_in_channels=8)
    unet, y = UNet(config), torch.ones(1, 8)
    check_unet(lambda x, t, context: unet(x, t, context, y.expand(len(x), -1)), config)


@pytest.mark.slow  # four contracts at its size
def test_the_bundled_model(bundled: LatentDiffusion) -> None:
    config = bundled.config
    check_unet(bundled.unet, config.unet)
    check_text_encoder(bundled.text_encoder, config.text_encoder)
    check_tokenizer(bundled.tokenizer, config.text_encoder)
    # A face on white, as the model was trained on; its rms error is 0.045.
    ys, xs = torch.meshgrid(torch.linspace(-1, 1, 128), torch.linspace(-1, 1, 128), indexing="ij")
    inside = (xs.square() + ys.square() < 0.7).float()
    face = torch.stack([torch.ones(128, 128), 1 - 0.4 * inside, 1 - 1.7 * inside])
    check_autoencoder(bundled.autoencoder, config.autoencoder, images=face[None], reconstruction=0.1)


@pytest.mark.parametrize(
    "guidance",
    [
        ClassifierFreeGuidance(),
        ClassifierFreeGuidance(batched=False),
        ClassifierFreeGuidance(rescale=0.7),
        ClassifierFreeGuidance(interval=(0.2, 0.8)),
    ],
)
def test_own_guidance(guidance: Any) -> None:
    check_guidance(guidance)


@pytest.mark.parametrize("config", [SD1.text_encoder, SMALL["sd2"].text_encoder])
def test_own_tokenizer(config: TextEncoderConfig) -> None:
    check_tokenizer(CLIPTokenizer(config.context_length, config.pad_token_id), config)


# --- other people's parts that are right ----------------------------------------------------------------


class Ours:
    """What most schedulers share: the timesteps, and x in the variable sigma = s_t / a_t."""

    def timesteps(self, schedule: NoiseSchedule, n: int) -> list[tuple[int, int]]:
        return spaced_pairs(len(schedule), n, "trailing")

    def sigma(self, schedule: NoiseSchedule, t: int) -> tuple[float, float]:
        a, s = schedule.signal_and_noise(t)
        return a, s / a


class Heun(Ours):
    """Karras et al. 2022 (arXiv:2206.00364), algorithm 1, in the sigmas of the noise schedule."""

    def step(self, predict: Any, x: Tensor, t: int, t_prev: int, history: Any, noise: Any) -> Step:
        (a, sigma), (a_prev, sigma_prev) = (self.sigma(predict.schedule, u) for u in (t, t_prev))
        first = predict(x, t)
        scaled = x / a + (sigma_prev - sigma) * first.eps
        if t_prev >= 0:
            second = predict(a_prev * scaled, t_prev)
            scaled = x / a + (sigma_prev - sigma) * (first.eps + second.eps) / 2
        return Step(a_prev * scaled, first.x0)


class DPMSolver2M(Ours):
    """Lu et al. 2022 (arXiv:2211.01095), algorithm 2: a multistep method with a dictionary as its history."""

    def step(self, predict: Any, x: Tensor, t: int, t_prev: int, history: Any, noise: Any) -> Step:
        (a, s), (a_prev, s_prev) = (predict.schedule.signal_and_noise(u) for u in (t, t_prev))
        x0 = predict(x, t).x0
        if t_prev < 0:
            return Step(x0, x0)
        h = math.log(a_prev / s_prev) - math.log(a / s)
        mixed = x0
        if history is not None:
            ratio = history["h"] / h
            mixed = (1 + 1 / (2 * ratio)) * x0 - 1 / (2 * ratio) * history["x0"]
        x_prev = s_prev / s * x - a_prev * math.expm1(-h) * mixed
        return Step(x_prev, x0, {"x0": x0, "h": h})


class EulerAncestral(Ours):
    """k-diffusion's ancestral Euler: a deterministic step further down than t_prev, and noise back up."""

    def step(self, predict: Any, x: Tensor, t: int, t_prev: int, history: Any, noise: Any) -> Step:
        (a, sigma), (a_prev, to) = (self.sigma(predict.schedule, u) for u in (t, t_prev))
        prediction = predict(x, t)
        up = math.sqrt(to**2 * (sigma**2 - to**2)) / sigma
        down = math.sqrt(to**2 - up**2)
        scaled = x / a + (down - sigma) * prediction.eps
        if up == 0:
            return Step(a_prev * scaled, prediction.x0)
        if noise is None:
            raise ValueError("this step needs noise")
        return Step(a_prev * (scaled + up * noise), prediction.x0)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("scheduler", [Heun(), DPMSolver2M(), EulerAncestral()])
def test_schedulers_of_other_families_keep_the_contract(scheduler: Any) -> None:
    check_scheduler(scheduler, stochastic=isinstance(scheduler, EulerAncestral))


def test_a_plain_function_is_a_network() -> None:
    def network(x: Tensor, t: Any, context: Tensor) -> Tensor:
        t = torch.as_tensor(t).reshape(-1, 1, 1, 1)
        return torch.tanh(x + t / 1000) + context.mean(dim=(1, 2))[:, None, None, None]

    check_unet(network, UNET)


# --- the error itself -----------------------------------------------------------------------------------


class HalfOfEverything:
    """Breaks three clauses: it writes into x, remembers how often it was called, and does not converge."""

    def __init__(self) -> None:
        self.calls = 0

    def timesteps(self, schedule: NoiseSchedule, n: int) -> list[tuple[int, int]]:
        return DDIM().timesteps(schedule, n)

    def step(self, predict: Any, x: Tensor, t: int, t_prev: int, history: Any, noise: Any) -> Step:
        self.calls += 1
        return DDIM().step(predict, x.mul_(0.5 + 1 / self.calls), t, t_prev, history, noise)


def test_a_message_names_the_part_and_tells_every_broken_clause_once() -> None:
    message = told(check_scheduler, HalfOfEverything())
    lines = message.split("\n")
    assert lines[0] == "HalfOfEverything breaks the contract of ldm_core.schedulers.Scheduler:"
    clauses = [line.strip() for line in lines[1:] if not line.startswith("    ")]
    assert len(clauses) == len(set(clauses)) == message.count("\n    why: ")
    assert {"purity", "replay", "convergence"} <= set(clauses)
    assert all("expected " in line and "; got " in line for line in lines if line.startswith("    expected"))


def deaf(x: Tensor, t: Any, context: Tensor) -> Tensor:
    raise KeyError("no such layer")


def test_the_parts_own_exception_is_the_cause() -> None:
    with pytest.raises(ContractError) as caught:
        check_unet(deaf, UNET)
    assert isinstance(caught.value.__cause__, KeyError)
    assert "deaf breaks the contract of ldm_core.protocols.NoisePredictor" in str(caught.value)
    assert "to work; got KeyError: 'no such layer'" in str(caught.value)
    assert issubclass(ContractError, AssertionError)


def test_a_check_changes_neither_the_part_nor_the_global_random_state() -> None:
    unet = UNet(UNET)
    before = torch.get_rng_state()
    weights = {name: weight.clone() for name, weight in unet.state_dict().items()}
    check_unet(unet, UNET, tokens=7)
    told(check_unet, lambda x, t, context: x + torch.randn_like(x), UNET)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.is_grad_enabled()
    assert unet.training
    assert all(torch.equal(weight, weights[name]) for name, weight in unet.state_dict().items())
    assert {weight.dtype for weight in unet.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("check", "part"),
    [
        (check_unet, UNet(UNET)),
        (check_autoencoder, AutoencoderKL(AUTOENCODER)),
        (check_text_encoder, CLIPTextEncoder(TEXT)),
        (check_tokenizer, CLIPTokenizer()),
    ],
)
def test_a_whole_models_configuration_is_refused(check: Any, part: Any) -> None:
    with pytest.raises(ValueError, match=r"expected an? \w+Config, as .* not LatentDiffusionConfig"):
        check(part, SD1)


def test_a_configuration_that_does_not_fit_is_told() -> None:
    unet = UNet(UNET)
    message = told(check_unet, unet, replace(UNET, in_channels=9))
    assert "to work; got ValueError: unet: expected x of (B, 4, h, w), got (3, 9, 2, 4)" in message
    assert "to return (3, 5, 2, 4)" in told(check_unet, unet, replace(UNET, out_channels=5))
    with pytest.raises(ValueError, match="at least 100 timesteps, got 50"):
        check_scheduler(DDIM(), NoiseSchedule(replace(SD1.noise_schedule, timesteps=50)))
