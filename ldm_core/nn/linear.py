"""Linear layers, y = x W^T + b, and the libraries that compute them on a CPU.

Every linear layer of the networks holds a function `linear(x, weight, bias)` and computes its output with it,
so that `set_linear` can change the computation without changing a network:

    blas       torch.nn.functional.linear: MKL in float32, oneDNN in bfloat16
    onednn     oneDNN's product with the bias as a part of it, or the same as a 1x1 convolution
    auto       the faster of them for this CPU

`ldm_core.optimize` also stores the weights in oneDNN's own layout.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_core.nn import onednn
from ldm_core.nn.cpu import convolves_bfloat16_faster, convolves_float32_faster, multiplies_tiles
from ldm_core.nn.transforms import only_computes
from ldm_core.support.modules import named_modules

# With fewer rows, a convolution costs more than it saves (examples/benchmarks/linear.py).
MIN_ROWS = {torch.float32: 256, torch.bfloat16: 1024}


class LinearFunction(Protocol):
    """x (..., C), weight (O, C), bias (O,) or None -> (..., O)."""

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor: ...


def blas_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """PyTorch's `linear`."""
    return F.linear(x, weight, bias)


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """oneDNN's own operator in bfloat16 on CPUs that multiply tiles, elsewhere a 1x1 convolution.

    PyTorch's `linear` copies the bias to the result before oneDNN's product. The convolution is over a
    feature map whose pixels are the rows of x.
    """
    if x.numel() == 0:
        return F.linear(x, weight, bias)
    if _multiplies_tiles(x) and only_computes(x, weight, bias):
        return onednn.packed_linear(x, weight, bias)
    line = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)  # (..., C) -> (1, C, rows, 1), channels-last
    out = F.conv2d(line, weight[:, :, None, None], bias)
    return out.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


def auto_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The faster of the two. The choice depends on the CPU, the dtype and the number of rows only."""
    return onednn_linear(x, weight, bias) if _suits_onednn(x, weight, bias) else F.linear(x, weight, bias)


def _suits_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    if not only_computes(x, weight, bias) or x.dtype not in MIN_ROWS:
        return False
    if _multiplies_tiles(x):
        return bias is not None
    wins = convolves_float32_faster if x.dtype == torch.float32 else convolves_bfloat16_faster
    return wins() and x.numel() // max(1, x.shape[-1]) >= MIN_ROWS[x.dtype]


def _multiplies_tiles(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16 and multiplies_tiles() and onednn.packs_linear()


BACKENDS: dict[str, LinearFunction] = {"blas": blas_linear, "onednn": onednn_linear, "auto": auto_linear}


class Linear(nn.Linear):
    """x W^T + b, with weight W (out_features, in_features): (..., in_features) -> (..., out_features)."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.linear: LinearFunction = auto_linear

    def forward(self, input: Tensor) -> Tensor:
        return self.linear(input, self.weight, self.bias)


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer's output follows from its input and weights alone: no hooks, no other class."""
    return type(layer) is Linear and not layer._forward_hooks and not layer._forward_pre_hooks


def set_linear(model: object, backend: str | LinearFunction) -> None:
    """Make every linear layer of `model` use a backend, by name, or a given function.

    model: a module or a `LatentDiffusion`. Raises ValueError for an unknown name, or if the model has no
    linear layer of this package.
    """
    if isinstance(backend, str):
        if backend not in BACKENDS:
            raise ValueError(f"unknown linear backend {backend!r}; expected one of {', '.join(BACKENDS)}")
        backend = BACKENDS[backend]
    layers = [layer for _, layer in named_modules(model) if isinstance(layer, Linear)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no linear layers of this package")
    for layer in layers:
        layer.linear = backend
