"""Layers' functions that store their weights in a form that is faster to compute with.

    PreparedConvolution   float32: Winograd's transformed weights, four times as large, so that small feature
                          maps benefit as well; otherwise oneDNN's layout where weights outweigh the map
    F2Convolution         Winograd's F(2x2, 3x3) in bfloat16, an approximation; otherwise as the former
    PreparedLinear        oneDNN's layout
    PreparedGeglu         oneDNN's layout of values and gates, with GELU as a step of the gates' product

Each is made when it is first needed, and again when the weights have changed (derived.py). Where only the
plain operators are right, for example for gradients or in a tracer, these are used. `ldm_core.optimize` puts
them into a model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from ldm_core.nn import onednn
from ldm_core.nn.blocks import Geglu, gated_projection, geglu
from ldm_core.nn.convolution import MIN_CHANNELS, auto_convolution, suits_winograd
from ldm_core.nn.cpu import multiplies_tiles
from ldm_core.nn.derived import Derived
from ldm_core.nn.linear import Linear, auto_linear, is_plain
from ldm_core.nn.transforms import only_computes
from ldm_core.nn.winograd import F2, F4, transform_weight, winograd_conv2d

# With fewer tiles, oneDNN's direct convolution is as fast, and its weights take a quarter of the memory.
MIN_TILES = 16


class Prepared(ABC):
    """The function of a layer, with what it stores of the layer's weights."""

    @staticmethod
    @abstractmethod
    def bytes_for(weight: Tensor) -> int:
        """The memory that is stored for a weight at most; 0 if nothing is gained."""


class PreparedConvolution(Prepared):
    """A 3x3 convolution, see `ConvolutionFunction`, that stores its weights for float32 or bfloat16."""

    def __init__(self) -> None:
        self._transformed = Derived(transform_weight)
        self._packed = Derived(onednn.pack_convolution)

    @staticmethod
    def bytes_for(weight: Tensor) -> int:
        if weight.device.type == "cpu" and weight.dtype == torch.float32 and _is_wide(weight):
            return weight.nbytes * F4.window**2 // 9
        packs = weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and onednn.packs_convolution()
        return weight.nbytes if packs else 0

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not only_computes(x, weight, bias):
            return auto_convolution(x, weight, bias)
        if suits_winograd(x, weight, bias, min_tiles=MIN_TILES):
            return winograd_conv2d(x, self._transformed(weight), bias)
        if gains_by_packing(x, weight):
            return onednn.packed_convolution(x, self._packed(weight, x.shape), bias)
        return auto_convolution(x, weight, bias)


class F2Convolution(PreparedConvolution):
    """`PreparedConvolution`, but with Winograd's F(2x2, 3x3) in bfloat16 (docs/accelerations.md)."""

    def __init__(self) -> None:
        super().__init__()
        self._coarse = Derived(_transform_for_bfloat16)

    @staticmethod
    def bytes_for(weight: Tensor) -> int:
        if weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and _is_wide(weight):
            return weight.nbytes * F2.window**2 // 9
        return PreparedConvolution.bytes_for(weight)

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if x.dtype == torch.bfloat16 and _is_wide(weight) and only_computes(x, weight, bias):
            return winograd_conv2d(x, self._coarse(weight), bias, F2)
        return super().__call__(x, weight, bias)


def _is_wide(weight: Tensor) -> bool:
    return min(weight.shape[:2]) >= MIN_CHANNELS


def _transform_for_bfloat16(weight: Tensor) -> Tensor:
    return transform_weight(weight.float(), F2).to(weight.dtype)


def gains_by_packing(x: Tensor, weight: Tensor) -> bool:
    """Whether much of a convolution's time goes into reading its weights, or rearranging them for tiles."""
    tiles = x.dtype == torch.bfloat16 and multiplies_tiles()
    return onednn.packs_convolution() and x.numel() > 0 and (tiles or weight.numel() > x.numel())


class PreparedLinear(Prepared):
    """A linear layer, see `LinearFunction`, that stores its weights in oneDNN's layout."""

    def __init__(self) -> None:
        self._packed = Derived(onednn.pack_linear)

    @staticmethod
    def bytes_for(weight: Tensor) -> int:
        suits = weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.bfloat16)
        return weight.nbytes if suits and onednn.packs_linear() else 0

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if x.numel() == 0 or not only_computes(x, weight, bias):
            return auto_linear(x, weight, bias)
        return onednn.packed_linear(x, self._packed(weight, _rows(x)), bias)


class PreparedGeglu(Prepared):
    """A gated projection, see `gated_projection`, that stores its weights in oneDNN's layout."""

    def __init__(self) -> None:
        self._packed = Derived(_pack_halves)

    bytes_for = staticmethod(PreparedLinear.bytes_for)

    def __call__(self, proj: nn.Module, function: Geglu, x: Tensor) -> Tensor:
        if function is not geglu or not isinstance(proj, Linear) or not is_plain(proj):
            return gated_projection(proj, function, x)
        if x.numel() == 0 or not only_computes(x, proj.weight, proj.bias):
            return gated_projection(proj, function, x)
        values, gates = self._packed(proj.weight, _rows(x))
        bias = proj.bias.chunk(2)
        value = onednn.packed_linear(x, values, bias[0])
        return onednn.packed_linear(x, gates, bias[1], "gelu").mul_(value)


def _pack_halves(weight: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    values, gates = weight.chunk(2)
    return onednn.pack_linear(values, rows), onednn.pack_linear(gates, rows)


def _rows(x: Tensor) -> int:
    return x.numel() // x.shape[-1]
