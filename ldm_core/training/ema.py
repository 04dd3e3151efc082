"""The average of the weights over the run, which draws better pictures than the last weights do.

    average <- d_n average + (1 - d_n) weights,   d_n = min(decay, (1 + n) / (10 + n))

after update n = 1, 2, …: Ho et al. 2020 (arXiv:2006.11239, appendix B) with CompVis's warm-up
(`LitEma` of `ldm.modules.ema`), without which the first, random weights would stay in it for long.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """The exponential moving average of a module's trainable parameters.

    tensors   by parameter name, in the parameters' types (float32) and on their devices
    """

    def __init__(self, module: nn.Module, decay: float = 0.9999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), not {decay}")
        self.decay = decay
        self._parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.tensors: dict[str, Tensor] = {n: p.detach().clone() for n, p in self._parameters.items()}

    @torch.no_grad()
    def update(self, n: int) -> None:
        """Take in the weights after update n = 1, 2, …"""
        decay = min(self.decay, (1 + n) / (10 + n))
        for name, parameter in self._parameters.items():
            self.tensors[name].lerp_(parameter, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block, the module has the averaged weights; after it its own again, to the bit."""
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
