"""CFG++: DDIM that adds the unconditional noise back after a guided step.

    guided = uncond + scale * (cond - uncond),  scale in [0, 1]
    x_prev = sqrt(alpha_prev) x_0(guided) + sqrt(1 - alpha_prev) uncond

Chung et al. 2024, "CFG++: Manifold-constrained Classifier Free Guidance for Diffusion Models"
(arXiv:2406.08070, algorithm 2). Scale 0.6 is about as strong as 7.5 of classifier-free guidance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ldm_core.condition import Condition
from ldm_core.guidance.classifier_free import ClassifierFreeGuidance, Network
from ldm_core.schedulers import DDIM


@dataclass(frozen=True)
class CFGPlusPlus:
    """Guidance for DDIM alone, whose `guidance_scale` is in [0, 1]; scale 0 is the unconditional prediction.

    Euler's version of the paper is `DDIM(spacing="trailing", set_alpha_to_one=True)` with this guidance.
    batched: as in `ClassifierFreeGuidance`. Raises ValueError for a scale outside [0, 1].
    """

    batched: bool = True
    schedulers: ClassVar[tuple[type, ...]] = (DDIM,)

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
        """The guided prediction alone, from which x_0 is computed."""
        return self.with_noise(network, x, t, cond, uncond, scale, progress)[0]

    def with_noise(
        self,
        network: Network,
        x: Tensor,
        t: float,
        cond: Condition,
        uncond: Condition,
        scale: float,
        progress: float,
    ) -> tuple[Tensor, Tensor]:
        """The guided prediction, and the prediction of the noise that the step adds back."""
        if not 0.0 <= scale <= 1.0:
            raise ValueError(f"CFG++ takes a guidance_scale in [0, 1] (0.6 is usual), not {scale}")
        if scale == 0.0:
            uncond_alone = network(x, t, uncond)
            return uncond_alone, uncond_alone
        plain = ClassifierFreeGuidance(batched=self.batched)
        eps_uncond, eps_cond = plain.predictions(network, x, t, cond, uncond)
        return plain.combine(eps_uncond, eps_cond, scale), eps_uncond
