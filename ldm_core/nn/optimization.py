"""Faster inference for more memory: `ldm_core.optimize(model)`.

Optimisations that cost no memory are on by default (docs/performance.md). This one stores the weights of
linear layers and convolutions a second time, in the forms of prepared.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ldm_core.nn.blocks import gated_projection
from ldm_core.nn.convolution import Conv3x3, auto_convolution
from ldm_core.nn.linear import Linear, auto_linear
from ldm_core.nn.prepared import F2Convolution, Prepared, PreparedConvolution, PreparedGeglu, PreparedLinear
from ldm_core.support.modules import named_modules

Model = TypeVar("Model")
# The attribute of a layer that holds its function, and that function by default.
USUAL: Mapping[str, Callable[..., Any]] = {
    "convolution": auto_convolution,
    "linear": auto_linear,
    "gated": gated_projection,
}
PREPARED: Mapping[str, type[Prepared]] = {
    "convolution": PreparedConvolution,
    "linear": PreparedLinear,
    "gated": PreparedGeglu,
}
APPROXIMATE: Mapping[str, type[Prepared]] = {**PREPARED, "convolution": F2Convolution}


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


def optimize(model: Model, *, extra_bytes: int | None = None, approximate: bool = False) -> Model:
    """Make `model` faster on a CPU, at the cost of memory. Modifies the model and returns it.

    Results change by rounding errors. Other devices and dtypes are not changed. A model's autoencoder is left
    as it is, because it is called once for a picture. `ldm_core.optimization(model)` says what was done.

    model: a `LatentDiffusion` or a module.
    extra_bytes: the memory that the stored weights may take, or None for no limit (SD1: 9.8 GB in float32,
        1.7 GB in bfloat16); 0 reverts it. The layers with the smallest weights, which process the largest
        feature maps, come first.
    approximate: also compute bfloat16 convolutions by Winograd's F(2x2, 3x3), which rounds more
        (docs/accelerations.md).
    Raises ValueError for a negative `extra_bytes`, or if the model has no layer of this package.
    """
    if extra_bytes is not None and extra_bytes < 0:
        raise ValueError(f"extra_bytes must not be negative, got {extra_bytes}")
    kinds = APPROXIMATE if approximate else PREPARED
    sizes = [(kinds[kind].bytes_for(_weight(layer, kind)), kind, layer) for kind, layer in _layers(model)]
    if not sizes:
        raise ValueError(f"{type(model).__name__} has no linear layers and 3x3 convolutions of this package")
    left = float("inf") if extra_bytes is None else extra_bytes
    for size, kind, layer in sorted(sizes, key=lambda row: row[0]):
        left -= size
        setattr(layer, kind, kinds[kind]() if size and left >= 0 else USUAL[kind])
    return model


def optimization(model: object) -> Optimization:
    """What `optimize` has done to a model."""
    functions = [(kind, layer, getattr(layer, kind)) for kind, layer in _layers(model)]
    done = [row for row in functions if isinstance(row[2], Prepared)]
    linears, feed_forwards, convolutions = (
        sum(found == kind for found, _, _ in done) for kind in ("linear", "gated", "convolution")
    )
    nbytes = sum(function.bytes_for(_weight(layer, kind)) for kind, layer, function in done)
    return Optimization(linears, feed_forwards, convolutions, nbytes)


def _layers(model: object) -> Iterator[tuple[str, Any]]:
    """The layers that `optimize` knows, each with the name of the attribute that holds its function."""
    of_feed_forwards = set()
    layer: Any
    for name, layer in named_modules(model):
        if name.startswith("autoencoder."):
            continue
        if hasattr(layer, "gated"):
            yield "gated", layer
            of_feed_forwards.add(layer.proj_in)
        elif isinstance(layer, Conv3x3):
            yield "convolution", layer
        elif isinstance(layer, Linear) and layer not in of_feed_forwards:
            yield "linear", layer


def _weight(layer: Any, kind: str) -> Any:
    return layer.proj_in.weight if kind == "gated" else layer.weight
