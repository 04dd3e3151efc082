"""The first stage of a model as a function, for conditioners of pictures."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ldm_core.protocols import Autoencoder

Encode = Callable[[Tensor], Tensor]


def encoder_of(autoencoder: Autoencoder) -> Encode:
    """Images (B, 3, H, W) in [-1, 1] to the mode of their latents (B, C, h, w), without a scale factor."""

    def encode(images: Tensor) -> Tensor:
        weight = next(autoencoder.parameters(), None) if isinstance(autoencoder, nn.Module) else None
        return autoencoder.encode(images if weight is None else images.to(weight)).mode()

    return encode
