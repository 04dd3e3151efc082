"""Speed that costs memory: `ldm_core.optimize(model)`.

What is free is the default already: blocks of attention and of the feed-forward layers that stay in the
cache, channels last, keys and values of a prompt made once, Winograd's convolutions on large maps. What is
left is to keep the convolutions' transformed weights, four times the size of the plain ones, so that small
maps of many channels gain, too, where transforming at every call would cost more than it saves.
"""

from __future__ import annotations

from typing import TypeVar

import torch

from ldm_core.nn.convolution import MIN_CHANNELS, Conv3x3, PreparedWinograd, convolutions, set_convolution

Model = TypeVar("Model")


def optimize(model: Model, *, extra_bytes: int | None = None) -> Model:
    """Make `model` faster on a CPU in float32, in place, for more memory; its results change by rounding.

    model: a `LatentDiffusion` or a module. extra_bytes: how much memory the prepared convolutions may take,
    None for as much as they want (SD1's U-Net: 8 GB); those of the fewest channels, which work on the
    largest maps, come first. Changes nothing on other devices and in other types.
    `set_convolution(model, "auto")` undoes it. Returns the model. Raises ValueError for a negative
    `extra_bytes`, or where there are no convolutions of this package.
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
