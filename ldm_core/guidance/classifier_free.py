"""Classifier-free guidance: move the prediction away from the unconditional one.

    guided = uncond + scale * (cond - uncond)

Ho and Salimans 2022 (arXiv:2207.12598), equation 6, in the form that CompVis's samplers use: scale 1 is
the conditional prediction and 0 the unconditional one. A negative prompt takes the place of the empty one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from ldm_core.condition import Condition

Network = Callable[[Tensor, float, Condition], Tensor]


@runtime_checkable
class Guidance(Protocol):
    """The interface: combines evaluations of the network into one prediction."""

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
        """The guided prediction (B, C, h, w) for x (B, C, h, w) at timestep t.

        network: `network(x, t, condition)` evaluates the U-Net for any number of rows, as many in x as in the
            condition; `Condition.cat` joins Conditions.
        cond, uncond: one row per image. Without an unconditional condition, both are `cond`, at scale 1.
        progress: from 0 (pure noise) towards 1 (the image).
        """
        ...


@dataclass(frozen=True)
class ClassifierFreeGuidance:
    """The standard combination, with optional refinements.

    rescale: phi in [0, 1], rescales the guided prediction towards the standard deviation of the conditional
        one (Lin et al. 2023, arXiv:2305.08891, equations 15 and 16).
    interval: the range of `progress` with guidance, from noise (0) to image (1); outside it the conditional
        prediction is used alone, which saves the second evaluation (Kynkäänniemi et al. 2024,
        arXiv:2404.07724).
    batched: evaluate both conditions in one call with twice the batch; False makes two calls, which need less
        memory.
    """

    rescale: float = 0.0
    interval: tuple[float, float] = (0.0, 1.0)
    batched: bool = True

    def __post_init__(self) -> None:
        if not 0.0 <= self.rescale <= 1.0:
            raise ValueError(f"rescale must be in [0, 1], not {self.rescale}")
        if not 0.0 <= self.interval[0] <= self.interval[1] <= 1.0:
            raise ValueError(f"interval must be an increasing pair within [0, 1], not {self.interval}")

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
        inside = self.interval[0] <= progress <= self.interval[1]
        if scale == 1.0 or not inside:
            return network(x, t, cond)
        if scale == 0.0:
            return network(x, t, uncond)
        return self.combine(*self.predictions(network, x, t, cond, uncond), scale)

    def predictions(
        self, network: Network, x: Tensor, t: float, cond: Condition, uncond: Condition
    ) -> tuple[Tensor, Tensor]:
        """The unconditional and the conditional prediction, each (B, C, h, w)."""
        if self.batched:
            eps = network(torch.cat([x, x]), t, Condition.cat([uncond, cond]))
            eps_uncond, eps_cond = eps.chunk(2)
        else:
            eps_uncond, eps_cond = network(x, t, uncond), network(x, t, cond)
        return eps_uncond, eps_cond

    def combine(self, eps_uncond: Tensor, eps_cond: Tensor, scale: float) -> Tensor:
        """The guided prediction from both predictions (equation 6), each (B, C, h, w).

        The paper's guidance strength w is scale - 1. The result is rescaled if `rescale` is set.
        """
        guided = eps_uncond + scale * (eps_cond - eps_uncond)
        if self.rescale:
            std_cond = eps_cond.std(dim=(1, 2, 3), keepdim=True)
            std_guided = guided.std(dim=(1, 2, 3), keepdim=True)
            rescaled = guided * (std_cond / std_guided)
            guided = self.rescale * rescaled + (1 - self.rescale) * guided
        return guided
