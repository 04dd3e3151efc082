"""The seam of training: what is trained, and what one batch of data costs it.

An objective holds the networks that learn as its submodules, so that its parameters are those to train;
frozen networks it keeps out of sight, as plain attributes of other objects. The loop in
`ldm_core.training.loop` knows objectives by this class only. CompVis's counterpart is
`training_step` of the Lightning modules in `ldm.models`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Batch = Mapping[str, Any]  # "image" (B, 3, H, W) in [-1, 1], "text": B tuples of captions, …
Metrics = dict[str, Tensor]  # scalars; the same names at every step


class Objective(nn.Module, ABC):
    """A loss and the parameters that it trains."""

    @abstractmethod
    def loss(self, batch: Batch, generators: Sequence[torch.Generator], step: int) -> tuple[Tensor, Metrics]:
        """(what is minimised, what is logged besides): means over the batch's samples, float32 scalars.

        All that is random comes from `generators`, sample k's from the k-th, so that a sample's noise depends
        neither on the batch that it is in nor on how many processes there are. step: 0, 1, … of the run.
        """

    def forward(
        self, batch: Batch, generators: Sequence[torch.Generator], step: int
    ) -> tuple[Tensor, Metrics]:
        # What wraps a module to spread it over processes watches its forward.
        return self.loss(batch, generators, step)

    def networks(self) -> list[nn.Module]:
        """What gradients pass through: the networks that learn, and others that are out of sight."""
        return [self]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups, each of which is clipped apart.

        "scale" in one multiplies the learning rate; before the step "start" it stays as it is.
        """
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]


def require_float32(network: nn.Module, name: str) -> None:
    """Raises ValueError for weights in 16 bits, whose updates would be rounded away."""
    types = {p.dtype for p in network.parameters() if p.is_floating_point()} - {torch.float32, torch.float64}
    if types:
        found = ", ".join(sorted(map(str, types)))
        raise ValueError(
            f"{name}: expected weights in float32 to train, got {found}; load it with dtype=torch.float32"
        )


def uniform(generators: Sequence[torch.Generator]) -> Tensor:
    """A number in [0, 1) from each stream, (B,), float32 on the CPU."""
    return torch.cat([torch.rand(1, generator=stream) for stream in generators])
