"""3x3 convolutions, which are half of the U-Net's and nearly all of the autoencoder's arithmetic.

Every 3x3 convolution of stride 1 holds a function `convolution(x, weight, bias)` and computes its output with
it, so that `set_convolution` can change the computation without changing a network:

    direct     torch.nn.functional.conv2d
    winograd   a quarter of the multiplications (winograd.py); not differentiable
    auto       winograd where it is faster, for large float32 feature maps on a CPU; otherwise direct

`ldm_core.optimize` also stores the transformed weights, which "winograd" computes at every call
(prepared.py).
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_core.nn.transforms import only_computes, transforming
from ldm_core.nn.winograd import F4, transform_weight, winograd_conv2d
from ldm_core.support.modules import named_modules

# With fewer tiles of 4x4 pixels, transforming the weights costs more than it saves; with fewer channels,
# transforming the tiles does (examples/benchmarks/convolution.py).
MIN_TILES = 96
MIN_CHANNELS = 192


def channels_last(x: Tensor) -> Tensor:
    """The same feature map (B, C, h, w) with its channels adjacent in memory.

    `x.contiguous(memory_format=torch.channels_last)` gives the same, but fails inside `torch.func.vmap`.
    """
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


class ConvolutionFunction(Protocol):
    """x (B, C, h, w), weight (O, C, 3, 3), bias (O,) or None -> (B, O, h, w), with zero padding of 1."""

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor: ...


def direct_convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """PyTorch's `conv2d`."""
    return F.conv2d(x, weight, bias, padding=1)


def winograd_convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Winograd's algorithm. Raises ValueError for half types and if gradients are required."""
    gradient = x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    if (gradient and torch.is_grad_enabled()) or transforming():
        raise ValueError("convolution backend 'winograd' has no gradients: use 'auto' or torch.no_grad()")
    if x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"convolution backend 'winograd' needs float32 or float64, got {x.dtype}")
    with torch.autocast(x.device.type, enabled=False):
        return winograd_conv2d(x, transform_weight(weight), bias)


def suits_winograd(x: Tensor, weight: Tensor, bias: Tensor | None, *, min_tiles: int = MIN_TILES) -> bool:
    """Whether Winograd's algorithm can be used for these tensors and is faster."""
    batch, channels, h, w = x.shape
    return (
        x.dtype == torch.float32
        and min(channels, weight.shape[0]) >= MIN_CHANNELS
        and batch * -(-h // F4.tile) * -(-w // F4.tile) >= min_tiles
        and only_computes(x, weight, bias)
    )


def auto_convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The faster of the two: Winograd's algorithm for large feature maps with many channels, else direct."""
    if suits_winograd(x, weight, bias):
        return winograd_conv2d(x, transform_weight(weight), bias)
    if _would_copy_the_weights(x, weight):
        result = direct_convolution(x.contiguous(), weight, bias)
        return channels_last(result)
    return direct_convolution(x, weight, bias)


def _would_copy_the_weights(x: Tensor, weight: Tensor) -> bool:
    """Whether PyTorch would copy the weights to the layout of x, and they are larger than x and the result.

    PyTorch copies the weights at every call. With a contiguous x, only x and the result are copied.
    """
    channels_last = x.permute(0, 2, 3, 1).is_contiguous() and not x.is_contiguous()
    mapped = x.numel() + x.numel() // x.shape[1] * weight.shape[0]
    return x.device.type == "cpu" and channels_last and weight.is_contiguous() and weight.numel() > mapped


convolution: ConvolutionFunction = auto_convolution

BACKENDS: dict[str, ConvolutionFunction] = {
    "direct": direct_convolution,
    "winograd": winograd_convolution,
    "auto": auto_convolution,
}


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution of stride 1 and padding 1: (B, C, h, w) -> (B, O, h, w)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)
        self.convolution: ConvolutionFunction = convolution

    def forward(self, input: Tensor) -> Tensor:
        return self.convolution(input, self.weight, self.bias)


def set_convolution(model: object, backend: str | ConvolutionFunction) -> None:
    """Make every 3x3 convolution of `model` use a backend, by name, or a given function.

    model: a module or a `LatentDiffusion`. Raises ValueError for an unknown name, or if the model has no 3x3
    convolution of this package.
    """
    if isinstance(backend, str):
        if backend not in BACKENDS:
            raise ValueError(
                f"unknown convolution backend {backend!r}; expected one of {', '.join(BACKENDS)}"
            )
        backend = BACKENDS[backend]
    layers = convolutions(model)
    if not layers:
        raise ValueError(f"{type(model).__name__} has no 3x3 convolutions of this package")
    for layer in layers:
        layer.convolution = backend


def convolutions(model: object) -> list[Conv3x3]:
    """The 3x3 convolutions of stride 1 in a module, or in a dataclass of modules."""
    return [layer for _, layer in named_modules(model) if isinstance(layer, Conv3x3)]
