"""Classifier-free guidance and its refinements against the equations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ldm_core.condition import Condition
from ldm_core.guidance import ClassifierFreeGuidance, Guidance

X = torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
COND = Condition(torch.randn(3, 7, 8, generator=torch.Generator().manual_seed(1)))
UNCOND = Condition(torch.randn(3, 7, 8, generator=torch.Generator().manual_seed(2)))


def network(x: Tensor, t: int, condition: Condition) -> Tensor:
    context = condition.context
    return (
        x * context.mean(dim=(1, 2))[:, None, None, None]
        + t * context.std(dim=(1, 2))[:, None, None, None] * x**2
    )


def guided(guidance: Guidance, scale: float, progress: float = 0.5) -> Tensor:
    return guidance(network, X, 3, COND, UNCOND, scale, progress)


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0, 4.0, 7.5])
@pytest.mark.parametrize("batched", [True, False])
def test_the_equation(scale: float, batched: bool) -> None:
    cond, uncond = network(X, 3, COND), network(X, 3, UNCOND)
    expected = uncond + scale * (cond - uncond)
    assert torch.allclose(guided(ClassifierFreeGuidance(batched=batched), scale), expected, atol=1e-6)


def test_rescale_agrees_with_diffusers() -> None:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    cond, uncond = network(X, 3, COND), network(X, 3, UNCOND)
    plain = uncond + 5 * (cond - uncond)
    for phi in (0.3, 0.7, 1.0):
        theirs = rescale_noise_cfg(plain, cond, guidance_rescale=phi)
        assert torch.allclose(guided(ClassifierFreeGuidance(rescale=phi), 5.0), theirs, atol=1e-6)
    full = guided(ClassifierFreeGuidance(rescale=1.0), 5.0)
    assert torch.allclose(full.std(dim=(1, 2, 3)), cond.std(dim=(1, 2, 3)), rtol=1e-5)


@pytest.mark.parametrize(
    ("progress", "on"), [(0.0, False), (0.19, False), (0.2, True), (0.6, True), (0.61, False)]
)
def test_interval(progress: float, on: bool) -> None:
    plain = ClassifierFreeGuidance()
    limited = guided(ClassifierFreeGuidance(interval=(0.2, 0.6)), 5.0, progress)
    assert torch.equal(limited, guided(plain, 5.0 if on else 1.0, progress))


@pytest.mark.parametrize("rescale", [-0.1, 1.1])
def test_rescale_outside_its_range(rescale: float) -> None:
    with pytest.raises(ValueError, match=r"rescale must be in \[0, 1\]"):
        ClassifierFreeGuidance(rescale=rescale)


@pytest.mark.parametrize("interval", [(0.5, 0.4), (-0.1, 0.5), (0.0, 1.5)])
def test_interval_outside_its_range(interval: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="interval must be an increasing pair"):
        ClassifierFreeGuidance(interval=interval)
