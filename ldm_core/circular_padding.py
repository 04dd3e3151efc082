"""Pictures that repeat without a seam: convolutions whose input continues at the opposite edge.

    handle = ldm_core.seamless(model)
    sampler.txt2img("a brick wall")          # the right edge continues at the left, the bottom at the top
    handle.remove()                          # or: with ldm_core.seamless(model): …

A convolution pads its input with zeros, from which a network learns where the edge is. With circular padding,
every layer of the U-Net and the decoder commutes with a circular shift, since attention has no positions and
norms take means over all pixels: there is no edge. CompVis's code has no counterpart.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ldm_core.nn.convolution import Conv3x3, ConvolutionFunction
from ldm_core.support.modules import named_modules

_HANDLE = "_seamless"  # attribute of a network that has a handle


class Wrapped:
    """A 3x3 convolution with circular padding, by a function that pads with zeros (`ConvolutionFunction`)."""

    padding_mode = "circular"

    def __init__(self, convolution: ConvolutionFunction) -> None:
        self.convolution = convolution

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # The zeros that the function adds reach the outermost rows and columns alone, which are cut off.
        return self.convolution(wrapped(x, 1), weight, bias)[..., 1:-1, 1:-1]


def wrapped(x: Tensor, rows: int, columns: int | None = None) -> Tensor:
    """x (B, C, h, w) continued at the opposite edges: (B, C, h + 2 rows, w + 2 columns)."""
    columns = rows if columns is None else columns
    return F.pad(x, (columns, columns, rows, rows), mode="circular")


class SeamlessHandle:
    """What `seamless` changed in a model. A context manager that ends with `remove`."""

    def __init__(self, networks: list[nn.Module]) -> None:
        self._networks = networks
        self._undo: list[Callable[[], None]] = []
        for network in networks:
            vars(network)[_HANDLE] = self
            for layer in network.modules():
                self._wrap(layer)

    def _wrap(self, layer: nn.Module) -> None:
        if isinstance(layer, Conv3x3):
            plain = layer.convolution
            layer.convolution = Wrapped(plain)
            self._undo.append(lambda: setattr(layer, "convolution", plain))
        elif isinstance(layer, nn.Conv2d) and any(layer.padding):
            layer.padding_mode = "circular"
            self._undo.append(lambda: setattr(layer, "padding_mode", "zeros"))

    def remove(self) -> None:
        """Restore the model, which then computes the same bits as before. Can be called more than once."""
        while self._undo:
            self._undo.pop()()
        for network in self._networks:
            vars(network).pop(_HANDLE, None)
        self._networks = []

    def __enter__(self) -> SeamlessHandle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def seamless(model: Any) -> SeamlessHandle:
    """Make the pictures of a `LatentDiffusion` repeat without a seam, in both directions; in place.

    It changes the 3x3 convolutions of the U-Net and of the autoencoder's decoder. The encoder, whose
    downsampling pads one side only, stays as it is.
    Raises ValueError for a model that is seamless already, works in windows, is compiled or captured, or has
    no networks of this package.
    """
    networks = _networks(model)
    if not networks:
        raise ValueError(f"{type(model).__name__} has no U-Net or decoder with convolutions of this package")
    if is_seamless(model):
        raise ValueError("this model is seamless already: call remove() of its handle first")
    modules = [module for network in networks for module in network.modules()]
    if any(hasattr(module, "windows") for module in modules):
        raise ValueError(
            "a model that works in windows cannot be seamless; windowed(model, wrap=True) joins sides"
        )
    if any(getattr(module, "runner", None) is not None for module in modules):
        raise ValueError("this model is compiled or captured: call seamless(model) before")
    return SeamlessHandle(networks)


def is_seamless(model: Any) -> bool:
    """Whether a model has a handle of `seamless`."""
    return any(_HANDLE in vars(network) for network in _networks(model))


def _networks(model: Any) -> list[nn.Module]:
    """The U-Net and the decoder of a model, those with convolutions of this package."""
    parts = [getattr(model, "unet", None), getattr(model, "autoencoder", None)]
    parts = [getattr(part, "decoder", part) for part in parts]
    return [
        part
        for part in parts
        if isinstance(part, nn.Module) and any(isinstance(layer, Conv3x3) for _, layer in named_modules(part))
    ]
