"""Guidance by several conditions at once, each with a weight.

    guided = uncond + scale * sum_i w_i (cond_i - uncond)

Liu et al. 2022, "Compositional Visual Generation with Composable Diffusion Models" (arXiv:2206.01714,
equation 11). A1111's web UI: prompts with AND.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ldm_core.condition import Condition
from ldm_core.guidance.classifier_free import ClassifierFreeGuidance, Guidance, Network


@dataclass(frozen=True)
class Composition:
    """The weighted sum of all conditions takes the place of the conditional prediction.

    weights: of the condition that the guidance is called with, one number per image, (B,).
    others: further conditions, one row per image, each with its weights (B,).
    guidance: combines the sum with the unconditional prediction; `interval` and `rescale` apply.
    """

    weights: Tensor
    others: Sequence[tuple[Condition, Tensor]]
    guidance: ClassifierFreeGuidance = field(default_factory=ClassifierFreeGuidance)

    def __call__(
        self,
        network: Network,
        x: Tensor,
        t: float,
        cond: Condition,
        uncond: Condition,
        scale: float,
        progress: float,
    ) -> Tensor:
        eps_uncond, eps = self.guidance.predictions(network, x, t, cond, uncond)
        total = eps_uncond + _per_image(self.weights, x) * (eps - eps_uncond)
        for other, weights in self.others:
            total = total + _per_image(weights, x) * (network(x, t, other) - eps_uncond)
        low, high = self.guidance.interval
        return self.guidance.combine(eps_uncond, total, scale if low <= progress <= high else 1.0)


def require_classifier_free(guidance: Guidance) -> ClassifierFreeGuidance:
    """A sampler's guidance, for a composition. Raises ValueError if it is of another kind."""
    if not isinstance(guidance, ClassifierFreeGuidance):
        raise ValueError(
            "prompts with AND, or with a weight at their end, require ClassifierFreeGuidance, not "
            f"{type(guidance).__name__}"
        )
    return guidance


def _per_image(weights: Tensor, x: Tensor) -> Tensor:
    return weights.to(x)[:, None, None, None]
