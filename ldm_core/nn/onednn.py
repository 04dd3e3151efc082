"""oneDNN's operators on weights in its own layout, which PyTorch's compiler uses as well.

A weight that is stored as PyTorch's documentation says is rearranged at every call where the CPU multiplies
tiles (AMX), and read less efficiently elsewhere. The layout depends on the number of rows or on the size of
the feature map; with another one, results are equal and slower. The operators are not a public interface of
PyTorch: `packs_linear` and `packs_convolution` say whether this version has them.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

_OPERATORS: Any = torch.ops.mkldnn
_NN: Any = torch._C._nn
_ONE = [1, 1]


@cache
def packs_linear() -> bool:
    return _has("_reorder_linear_weight") and _has("_linear_pointwise")


@cache
def packs_convolution() -> bool:
    return hasattr(_NN, "mkldnn_reorder_conv2d_weight") and _has("_convolution_pointwise")


def pack_linear(weight: Tensor, rows: int) -> Tensor:
    """weight (O, C) in the layout for inputs with this number of rows."""
    return _OPERATORS._reorder_linear_weight(weight, rows)


def packed_linear(x: Tensor, packed: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    """activation(x W^T + b): (..., C) -> (..., O). activation: "none" or "gelu".

    packed: from `pack_linear`, or a weight (O, C) as it is.
    """
    algorithm = "none" if activation == "gelu" else ""  # the exact GELU, not tanh's approximation
    return _OPERATORS._linear_pointwise(x, packed, bias, activation, [], algorithm)


def pack_convolution(weight: Tensor, shape: torch.Size) -> Tensor:
    """weight (O, C, 3, 3) in the layout for feature maps of this shape (B, C, h, w)."""
    plain = weight.contiguous(memory_format=torch.channels_last).to_mkldnn()
    return _NN.mkldnn_reorder_conv2d_weight(plain, _ONE, _ONE, _ONE, 1, list(shape))


def packed_convolution(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """A 3x3 convolution of stride 1 and padding 1: (B, C, h, w) -> (B, O, h, w), channels-last."""
    return _OPERATORS._convolution_pointwise(x, packed, bias, _ONE, _ONE, _ONE, 1, "none", [], "")


def _has(operator: str) -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(_OPERATORS, operator)
