"""Faster inference for more memory: `ldm_core.optimize(model)`.

Optimisations that cost no memory are on by default (docs/performance.md). This one stores the transformed
weights of Winograd's convolutions, which are four times as large as the original weights. Small feature maps
with many channels then benefit too, for which transforming the weights at every call costs more than it
saves.
"""

from __future__ import annotations

from typing import TypeVar

import torch

from ldm_core.nn.convolution import MIN_CHANNELS, Conv3x3, PreparedWinograd, convolutions, set_convolution

Model = TypeVar("Model")


def optimize(model: Model, *, extra_bytes: int | None = None) -> Model:
    """Make `model` faster on a CPU in float32, at the cost of memory. Modifies the model and returns it.

    Results change by rounding errors. model: a `LatentDiffusion` or a module. extra_bytes: the memory that
    the stored weights may take, or None for no limit (SD1's U-Net: 8 GB). The convolutions with the fewest
    channels, which process the largest feature maps, come first. Other devices and dtypes are not changed.
    `set_convolution(model, "auto")` reverts it. Raises ValueError for a negative `extra_bytes`, or if the
    model has no convolution of this package.
    """
    if extra_bytes is not None and extra_bytes < 0:
        raise ValueError(f"extra_bytes must not be negative, got {extra_bytes}")
    set_convolution(model, "auto")
    left = float("inf") if extra_bytes is None else extra_bytes
    for layer in sorted(filter(_gains, convolutions(model)), key=lambda layer: layer.weight.numel()):
        left -= 4 * layer.weight.nbytes
        if left < 0:
            break
        layer.convolution = PreparedWinograd(layer.weight)
    return model


def _gains(layer: Conv3x3) -> bool:
    weight = layer.weight
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and min(layer.in_channels, layer.out_channels) >= MIN_CHANNELS
    )
