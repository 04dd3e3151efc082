"""Exponential moving average (EMA) of the weights, which samples better images than the last weights.

    average <- d_n average + (1 - d_n) weights,   d_n = min(decay, (1 + n) / (10 + n))

after update n = 1, 2, …: Ho et al. 2020 (arXiv:2006.11239, appendix B) with the warm-up of CompVis's `LitEma`
(`ldm.modules.ema`), which forgets the random initial weights quickly.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """The exponential moving average of a module's trainable parameters.

    tensors   the averages by parameter name, with the parameters' dtypes and devices
    """

    def __init__(self, module: nn.Module, decay: float = 0.9999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), not {decay}")
        self.decay = decay
        self._parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.tensors: dict[str, Tensor] = {n: p.detach().clone() for n, p in self._parameters.items()}

    @torch.no_grad()
    def update(self, n: int) -> None:
        """Update the average with the weights after optimizer step n = 1, 2, …"""
        decay = min(self.decay, (1 + n) / (10 + n))
        for name, parameter in self._parameters.items():
            self.tensors[name].lerp_(parameter, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Context manager: the module has the averaged weights, and its own bit for bit afterwards."""
        kept = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self._fill(self.tensors)
        try:
            yield
        finally:
            self._fill(kept)

    @torch.no_grad()
    def _fill(self, tensors: dict[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(tensors[name])
