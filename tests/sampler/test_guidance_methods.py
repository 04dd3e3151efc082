"""CFG++, perturbed-attention and adaptive projected guidance, and compositions, against their formulas."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.configs import TINY
from support.random_models import random_model
from torch import Tensor

from ldm_core import DDIM, ClassifierFreeGuidance, Condition, Euler, LatentDiffusion, Sampler
from ldm_core.guidance import AdaptiveProjectedGuidance, CFGPlusPlus, Composition, PerturbedAttention
from ldm_core.guidance.perturbed_attention import perturbed
from ldm_core.testing import check_guidance


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


X = draw(2, 4, 8, 8, seed=0)
COND, UNCOND = Condition(draw(2, 7, 64, seed=1)), Condition(draw(2, 7, 64, seed=2))


@pytest.fixture(scope="module")
def model() -> LatentDiffusion:
    return random_model(TINY["sd1"])


def evaluate(model: LatentDiffusion, condition: Condition, x: Tensor = X, t: float = 500) -> Tensor:
    return model.unet(x, t, condition.context)


def network_of(model: LatentDiffusion) -> Any:
    return lambda x, t, condition: model.unet(x, t, condition.context)


def norm(x: Tensor) -> Tensor:
    return x.square().sum(dim=(1, 2, 3), keepdim=True).sqrt()


@pytest.mark.parametrize("guidance", [AdaptiveProjectedGuidance(), AdaptiveProjectedGuidance(0.3, 2.0, -0.5)])
def test_projected_guidance_meets_the_contract(guidance: AdaptiveProjectedGuidance) -> None:
    check_guidance(guidance)


@pytest.mark.parametrize("r", [math.inf, 5.0])
@pytest.mark.parametrize("eta", [0.0, 0.4])
def test_projected_guidance_is_the_formula(r: float, eta: float) -> None:
    e_u, e_c = draw(2, 4, 8, 8, seed=3), draw(2, 4, 8, 8, seed=4)
    before, beta, s = draw(2, 4, 8, 8, seed=5), -0.5, 6.0
    d = e_c - e_u + beta * before
    clipped = d * torch.minimum(torch.ones(()), r / norm(d))
    unit = e_c / norm(e_c)
    parallel = (clipped * unit).sum(dim=(1, 2, 3), keepdim=True) * unit
    expected = e_c + (s - 1) * (clipped - parallel + eta * parallel)
    guided, kept = AdaptiveProjectedGuidance(eta, r, beta).combine(e_u, e_c, s, before)
    torch.testing.assert_close(guided, expected)
    assert torch.equal(kept, d)


def test_projected_guidance_with_all_of_the_parallel_part_is_classifier_free() -> None:
    e_u, e_c = draw(2, 4, 8, 8, seed=3), draw(2, 4, 8, 8, seed=4)
    guided, _ = AdaptiveProjectedGuidance(eta=1.0).combine(e_u, e_c, 5.0)
    torch.testing.assert_close(guided, ClassifierFreeGuidance().combine(e_u, e_c, 5.0))


def test_the_difference_without_its_parallel_part_is_orthogonal() -> None:
    e_u, e_c = draw(2, 4, 8, 8, seed=3), draw(2, 4, 8, 8, seed=4)
    guided, _ = AdaptiveProjectedGuidance().combine(e_u, e_c, 5.0)
    assert ((guided - e_c) * e_c).sum(dim=(1, 2, 3)).abs().max() < 1e-3


def test_momentum_lasts_for_one_run(model: LatentDiffusion) -> None:
    sampler = Sampler(model, guidance=AdaptiveProjectedGuidance(momentum=-0.75))
    options = {"steps": 2, "guidance_scale": 5.0, "seed": 1, "output": "latent"}
    first, second = sampler.txt2img("a cat", **options), sampler.txt2img("a cat", **options)
    without = Sampler(model, guidance=AdaptiveProjectedGuidance()).txt2img("a cat", **options)
    assert torch.equal(first, second)
    assert not torch.equal(first, without)


def test_perturbed_attention_is_the_formula(model: LatentDiffusion) -> None:
    """The perturbed prediction has the projected values in the place of the middle block's self-attention."""
    block = model.unet.mid.attention.blocks[0]
    e_u, e_c = evaluate(model, UNCOND), evaluate(model, COND)
    plain = block.attn1.attention
    block.attn1.attention = lambda q, k, v, *, causal=False: v
    try:
        e_p = evaluate(model, COND)
    finally:
        block.attn1.attention = plain
    assert (e_p - e_c).abs().max() > 1e-4
    guided = PerturbedAttention(model, 3.0)(network_of(model), X, 500, COND, UNCOND, 5.0, 0.5)
    torch.testing.assert_close(guided, e_u + 5 * (e_c - e_u) + 3 * (e_c - e_p), atol=1e-5, rtol=1e-4)
    alone = PerturbedAttention(model, 3.0)(network_of(model), X, 500, COND, UNCOND, 1.0, 0.5)
    torch.testing.assert_close(alone, e_c + 3 * (e_c - e_p), atol=1e-5, rtol=1e-4)


def test_perturbed_attention_of_scale_0_and_its_removal_are_plain_to_the_bit(model: LatentDiffusion) -> None:
    before = evaluate(model, COND)
    with perturbed(model, ["mid", "up"]):
        assert not torch.equal(evaluate(model, COND), before)
    assert torch.equal(evaluate(model, COND), before)
    arguments = (network_of(model), X, 500, COND, UNCOND, 5.0, 0.5)
    assert torch.equal(PerturbedAttention(model, 0.0)(*arguments), ClassifierFreeGuidance()(*arguments))


def test_the_adaptive_scale(model: LatentDiffusion) -> None:
    guidance = PerturbedAttention(model, 3.0, adaptive=0.005)
    assert [guidance.scale_at(t) for t in (1000, 800, 400, 0)] == [3.0, 2.0, 0.0, 0.0]


def test_layers_that_are_not_there(model: LatentDiffusion) -> None:
    with pytest.raises(ValueError, match="the U-Net has no self-attention in 'middle'; expected names such"):
        PerturbedAttention(model, layers=["middle"])
    with pytest.raises(ValueError, match="is no U-Net of this package, which perturbed attention needs"):
        PerturbedAttention(torch.nn.Linear(1, 1))


def test_cfg_plus_plus_is_the_formula(model: LatentDiffusion) -> None:
    """A run of two steps, written out."""
    cond, uncond = model.condition(["a cat"]), model.condition([""])
    noise, scale = draw(1, 4, 16, 16, seed=6), 0.6
    scheduler = DDIM()
    x = noise
    for t, t_prev in scheduler.timesteps(model.noise_schedule, 2):
        now, prev = (model.noise_schedule.alpha_cumprod(max(one, 0)) for one in (t, t_prev))
        e_u, e_c = (model.unet(x, t, one.context) for one in (uncond, cond))
        x0 = (x - math.sqrt(1 - now) * (e_u + scale * (e_c - e_u))) / math.sqrt(now)
        x = math.sqrt(prev) * x0 + math.sqrt(1 - prev) * e_u
    sampler = Sampler(model, scheduler, CFGPlusPlus())
    found = sampler.txt2img("a cat", steps=2, guidance_scale=scale, noise=noise, output="latent")
    torch.testing.assert_close(found, x, atol=1e-4, rtol=1e-4)


def test_cfg_plus_plus_of_scale_0_is_the_unconditional_run_to_the_bit(model: LatentDiffusion) -> None:
    options = {"steps": 2, "guidance_scale": 0.0, "seed": 1, "output": "latent"}
    found = Sampler(model, guidance=CFGPlusPlus()).txt2img("a cat", **options)
    assert torch.equal(found, Sampler(model).txt2img("a cat", **options))


def test_what_cfg_plus_plus_does_not_take(model: LatentDiffusion) -> None:
    with pytest.raises(ValueError, match="CFGPlusPlus requires the scheduler DDIM, not Euler"):
        Sampler(model, Euler(), CFGPlusPlus())
    with pytest.raises(ValueError, match=r"takes a guidance_scale in \[0, 1\] \(0.6 is usual\), not 7.5"):
        Sampler(model, guidance=CFGPlusPlus()).txt2img("a cat", steps=1, guidance_scale=7.5)


def test_a_composition_is_the_formula(model: LatentDiffusion) -> None:
    other, weights = Condition(draw(2, 7, 64, seed=7)), (torch.tensor([1.0, 0.3]), torch.tensor([0.5, -2.0]))
    e_u, e_1, e_2 = (evaluate(model, one) for one in (UNCOND, COND, other))
    w_1, w_2 = (one[:, None, None, None] for one in weights)
    expected = e_u + 5 * (w_1 * (e_1 - e_u) + w_2 * (e_2 - e_u))
    composition = Composition(weights[0], [(other, weights[1])])
    found = composition(network_of(model), X, 500, COND, UNCOND, 5.0, 0.5)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eta": math.nan}, "eta and momentum must be finite, not nan and 0.0"),
        ({"momentum": math.inf}, "eta and momentum must be finite, not 0.0 and inf"),
        ({"norm_threshold": 0.0}, "norm_threshold must be positive, not 0.0"),
    ],
)
def test_bad_settings(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdaptiveProjectedGuidance(**arguments)
