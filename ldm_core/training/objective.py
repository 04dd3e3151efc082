"""The interface between losses and the training loop: a loss and the parameters that it trains.

The networks to train are submodules of the objective; frozen networks are not, so that its parameters are
exactly those to train. `ldm_core.training.loop` uses objectives only through this class. CompVis's
counterpart is `training_step` of the Lightning modules in `ldm.models`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Batch = Mapping[str, Any]  # "image" (B, 3, H, W) in [-1, 1], "text": B tuples of captions, …
Metrics = dict[str, Tensor]  # scalars; every step must return the same names


class Objective(nn.Module, ABC):
    """A loss and the parameters that it trains."""

    @abstractmethod
    def loss(self, batch: Batch, generators: Sequence[torch.Generator], step: int) -> tuple[Tensor, Metrics]:
        """The loss to minimise and further metrics to log: float32 scalars, means over the batch.

        generators: one per sample of the batch. Draw all random numbers of sample k from the k-th, so that
            they depend neither on the batch nor on the number of processes.
        step: 0, 1, … of the run.
        """

    def forward(
        self, batch: Batch, generators: Sequence[torch.Generator], step: int
    ) -> tuple[Tensor, Metrics]:
        """The same as `loss`."""
        # DistributedDataParallel and FSDP hook into `forward`.
        return self.loss(batch, generators, step)

    def networks(self) -> list[nn.Module]:
        """Networks that gradients flow through: the trained ones, and frozen ones that are not submodules."""
        return [self]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The optimizer's parameter groups. Gradients are clipped per group.

        A group's "scale" multiplies the learning rate; "start" is the first step that trains the group.
        """
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]


def require_float32(network: nn.Module, name: str) -> None:
    """Raises ValueError for 16-bit weights, in which small updates are rounded away."""
    types = {p.dtype for p in network.parameters() if p.is_floating_point()} - {torch.float32, torch.float64}
    if types:
        found = ", ".join(sorted(map(str, types)))
        raise ValueError(
            f"{name}: expected weights in float32 for training, got {found}; load it with dtype=torch.float32"
        )


def uniform(generators: Sequence[torch.Generator]) -> Tensor:
    """One uniform number in [0, 1) per generator: (B,), float32 on the CPU."""
    return torch.cat([torch.rand(1, generator=g) for g in generators])
