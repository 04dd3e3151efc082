"""Adaptive projected guidance: large scales without saturated colours.

    d      = cond - uncond + momentum * d_before
    d      = d * min(1, r / |d|)
    guided = cond + (scale - 1) (d_orthogonal + eta d_parallel)

where d_parallel is the part of d along cond. Sadat et al. 2024, "Eliminating Oversaturation and Artifacts of
High Guidance Scales in Diffusion Models" (arXiv:2410.02416, algorithm 1). The paper applies it to predictions
of x_0; here, as in diffusers, to the network's own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm_core.condition import Condition
from ldm_core.guidance.classifier_free import ClassifierFreeGuidance, Network

DIMS = (1, 2, 3)  # norms and projections are over all dimensions but the batch


@dataclass(frozen=True)
class AdaptiveProjectedGuidance:
    """Guidance without the part of the difference that is parallel to the conditional prediction.

    eta: how much of the parallel part remains; 1 with the other defaults is classifier-free guidance.
    norm_threshold: r, the largest norm of the difference; infinite by default.
    momentum: adds a part of the difference before; negative in the paper, -0.5 to -0.75. It needs `for_run`,
        which the sampler calls once per run, and which a run's state is kept in.
    batched: as in `ClassifierFreeGuidance`.
    Raises ValueError for numbers that are not finite, and for a norm_threshold that is not positive.
    """

    eta: float = 0.0
    norm_threshold: float = math.inf
    momentum: float = 0.0
    batched: bool = True

    def __post_init__(self) -> None:
        if not (math.isfinite(self.eta) and math.isfinite(self.momentum)):
            raise ValueError(f"eta and momentum must be finite, not {self.eta} and {self.momentum}")
        if not self.norm_threshold > 0:
            raise ValueError(f"norm_threshold must be positive, not {self.norm_threshold}")

    def for_run(self) -> _Run:
        """The guidance of one run, which remembers the difference of the evaluation before."""
        return _Run(self)

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
        return self.for_run()(network, x, t, cond, uncond, scale, progress)

    def combine(
        self, eps_uncond: Tensor, eps_cond: Tensor, scale: float, before: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The guided prediction, and the difference with momentum for the next evaluation."""
        d = eps_cond - eps_uncond
        if self.momentum and before is not None:
            d = d + self.momentum * before
        clipped = d
        if self.norm_threshold != math.inf:
            norm = torch.linalg.vector_norm(d, dim=DIMS, keepdim=True)
            clipped = d * (self.norm_threshold / norm).clamp(max=1)
        along = eps_cond.double()
        square = (along * along).sum(dim=DIMS, keepdim=True)
        share = (clipped.double() * along).sum(dim=DIMS, keepdim=True) / square.clamp(min=1e-300)
        parallel = (share * along).to(d)
        return eps_cond + (scale - 1) * (clipped - parallel + self.eta * parallel), d


class _Run:
    """`AdaptiveProjectedGuidance` with the state of one run."""

    def __init__(self, settings: AdaptiveProjectedGuidance) -> None:
        self.settings = settings
        self.before: Tensor | None = None

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
        if scale == 1.0:
            return network(x, t, cond)
        plain = ClassifierFreeGuidance(batched=self.settings.batched)
        eps_uncond, eps_cond = plain.predictions(network, x, t, cond, uncond)
        guided, self.before = self.settings.combine(eps_uncond, eps_cond, scale, self.before)
        return guided
