"""A linear layer that computes as a 1x1 convolution where that is the faster way to the same numbers.

In float32 PyTorch gives a linear layer to the BLAS it was built with, MKL, and a convolution to oneDNN. Where
MKL is slow (AMD chips with AVX-512 are said to be such), a linear layer can gain by being a convolution.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_ROWS = 1024  # a convolution reorders its weights at every call, which few rows do not pay for


class Linear(nn.Linear):
    """x (..., C) -> (..., O): x W^T + b."""

    def forward(self, input: Tensor) -> Tensor:
        return as_convolution(input, self) if self._suits_convolution(input) else super().forward(input)

    def _suits_convolution(self, x: Tensor) -> bool:
        return (
            x.device.type == "cpu"
            and x.dtype == self.weight.dtype == torch.float32
            and x.numel() >= MIN_ROWS * x.shape[-1]
            and x.is_contiguous()
            and not torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
        )


def as_convolution(x: Tensor, layer: nn.Linear) -> Tensor:
    """The layer as a 1x1 convolution over an image of one line: x (..., C), contiguous -> (..., O)."""
    line = x.reshape(1, 1, -1, x.shape[-1]).permute(0, 3, 1, 2)  # (1, C, 1, rows), channels last
    out = F.conv2d(line, layer.weight[:, :, None, None], layer.bias)
    return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)
