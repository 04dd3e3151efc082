"""Faster inference for more memory: `ldm_core.optimize(model)`.

Optimisations that cost no memory are on by default (docs/performance.md). This one stores the weights of
linear layers and convolutions a second time, in the forms of prepared.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from ldm_core.nn.blocks import gated_projection
from ldm_core.nn.convolution import Conv3x3, auto_convolution
from ldm_core.nn.linear import Linear, auto_linear
from ldm_core.nn.prepared import (
    PreparedConvolution,
    PreparedGeglu,
    PreparedLinear,
    bytes_of_convolution,
    bytes_of_linear,
)
from ldm_core.support.modules import named_modules

Model = TypeVar("Model")
# A layer's attribute that holds its function, that function by default, and what takes its place.
KINDS: dict[str, tuple[Callable[..., Any], Callable[[], Any]]] = {
    "convolution": (auto_convolution, PreparedConvolution),
    "linear": (auto_linear, PreparedLinear),
    "gated": (gated_projection, PreparedGeglu),
}


@dataclass(frozen=True)
class Optimization:
    """What `optimize` has done to a model: the numbers of its layers, and the memory that they take at most.

    feed_forwards are counted without their gated projections in `linears`. The memory is taken at the first
    call of each layer.
    """

    linears: int
    feed_forwards: int
    convolutions: int
    nbytes: int

    def __str__(self) -> str:
        if not self.nbytes:
            return "no layer stores its weights a second time"
        layers = (
            f"{self.linears} linear layers, {self.feed_forwards} feed-forward layers and "
            f"{self.convolutions} convolutions"
        )
        return f"{layers} store their weights a second time, in up to {self.nbytes / 1e9:.2f} GB"


def optimize(model: Model, *, extra_bytes: int | None = None) -> Model:
    """Make `model` faster on a CPU, at the cost of memory. Modifies the model and returns it.

    Results change by rounding errors. model: a `LatentDiffusion` or a module. extra_bytes: the memory that
    the stored weights may take, or None for no limit (SD1: 10 GB in float32, 1.9 GB in bfloat16); 0 reverts
    it. The layers with the smallest weights, which process the largest feature maps, come first. A model's
    autoencoder is left as it is, because one call for a picture gains nothing. Other devices and dtypes are
    not changed. `ldm_core.optimization(model)` says what was done. Raises ValueError for a negative
    `extra_bytes`, or if the model has no layer of this package.
    """
    if extra_bytes is not None and extra_bytes < 0:
        raise ValueError(f"extra_bytes must not be negative, got {extra_bytes}")
    layers = list(_layers(model))
    if not layers:
        raise ValueError(f"{type(model).__name__} has no linear layers and 3x3 convolutions of this package")
    left = float("inf") if extra_bytes is None else extra_bytes
    for kind, layer, size in sorted(layers, key=lambda found: found[2]):
        usual, prepared = KINDS[kind]
        left -= size
        setattr(layer, kind, prepared() if size and left >= 0 else usual)
    return model


def optimization(model: object) -> Optimization:
    """What `optimize` has done to a model."""
    done = [
        (kind, size) for kind, layer, size in _layers(model) if type(getattr(layer, kind)) is KINDS[kind][1]
    ]
    counts = {kind: sum(kind == found for found, _ in done) for kind in KINDS}
    return Optimization(
        counts["linear"], counts["gated"], counts["convolution"], sum(size for _, size in done)
    )


def _layers(model: object) -> Iterator[tuple[str, Any, int]]:
    """The kind, the layer and the memory it would take, of all layers that `optimize` knows."""
    of_feed_forwards = set()
    layer: Any
    for name, layer in named_modules(model):
        if name.startswith("autoencoder."):
            continue
        if hasattr(layer, "gated"):
            yield "gated", layer, bytes_of_linear(layer.proj_in)
            of_feed_forwards.add(layer.proj_in)
        elif isinstance(layer, Conv3x3):
            yield "convolution", layer, bytes_of_convolution(layer)
        elif isinstance(layer, Linear) and layer not in of_feed_forwards:
            yield "linear", layer, bytes_of_linear(layer)
