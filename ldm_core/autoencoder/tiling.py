"""Encode and decode large images in windows, which needs the memory of one window besides the result.

Neighbouring windows overlap and are blended, so that there are no visible seams. The result is close to that
of the whole image but not equal, because group norm and the attention of the middle block see one window.
Windows with linear ramps ("tiles") are for models that sample the whole latent; those with CompVis's weights
are `LatentDiffusion.decode_first_stage` and `encode_first_stage` with `split_input_params`.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from ldm_core.autoencoder.gaussian import DiagonalGaussian
from ldm_core.autoencoder.kl import AutoencoderKL
from ldm_core.autoencoder.vq import AutoencoderVQ, PointMass
from ldm_core.windows import Windows

Autoencoder = AutoencoderKL | AutoencoderVQ


class WindowedAutoencoder(nn.Module):
    """An autoencoder that works in windows. An image of one window gives the wrapped autoencoder's result.

    autoencoder: its posteriors must be of this package. A VQ autoencoder quantises within each window.
    windows: in latent pixels, for encoding and decoding.
    factor: pixels per latent pixel along each axis; None: that of the autoencoder's configuration.
    """

    def __init__(self, autoencoder: Any, windows: Windows, *, factor: int | None = None) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.windows = windows
        self.factor: int = autoencoder.config.downsampling if factor is None else factor

    def encode(self, images: Tensor) -> DiagonalGaussian | PointMass:
        """As the `encode` of the wrapped autoencoder: the weighted mean of its posteriors' parameters."""
        windows = self.windows.times(self.factor)
        return _encode(self.autoencoder, images, windows, Fraction(1, self.factor))

    def decode(self, z: Tensor) -> Tensor:
        """As the `decode` of the wrapped autoencoder."""
        return self.windows.apply(lambda part, _: self.autoencoder.decode(part), z, scale=self.factor)


class TiledAutoencoder(WindowedAutoencoder):
    """An autoencoder that works in tiles: windows that are blended with linear ramps.

        model = dataclasses.replace(model, autoencoder=TiledAutoencoder(model.autoencoder))

    tile, overlap: in latent pixels, for encoding and decoding.
    """

    def __init__(self, autoencoder: Autoencoder, *, tile: int = 64, overlap: int = 16) -> None:
        super().__init__(autoencoder, _tiles(tile, overlap))


def _tiles(tile: int, overlap: int) -> Windows:
    if not 0 <= overlap < tile:
        raise ValueError(f"tiles of {tile} need an overlap in 0..{tile - 1}, got {overlap}")
    return Windows(tile, tile - overlap, weights="ramp")


def tiled(
    function: Callable[[Tensor], Tensor], x: Tensor, *, tile: int, overlap: int, scale: Fraction
) -> Tensor:
    """Apply `function` to overlapping tiles of x (B, C, h, w) and blend the results.

    scale: output pixels per input pixel along each axis. tile, overlap: in input pixels; they must correspond
    to whole numbers of output pixels. Raises ValueError otherwise.
    """
    return _tiles(tile, overlap).apply(lambda part, _: function(part), x, scale=scale)


def decode_tiled(autoencoder: Autoencoder, z: Tensor, *, tile: int = 64, overlap: int = 16) -> Tensor:
    """`autoencoder.decode` in tiles of `tile` latent pixels: z (B, C, h, w) -> images (B, 3, h*f, w*f)."""
    return TiledAutoencoder(autoencoder, tile=tile, overlap=overlap).decode(z)


def encode_tiled(
    autoencoder: Autoencoder, images: Tensor, *, tile: int = 512, overlap: int = 128
) -> DiagonalGaussian | PointMass:
    """`autoencoder.encode` in tiles of `tile` pixels: (B, 3, H, W) -> q(z | images), (B, C, H/f, W/f)."""
    return _encode(autoencoder, images, _tiles(tile, overlap), Fraction(1, autoencoder.config.downsampling))


def _encode(
    autoencoder: Any, images: Tensor, windows: Windows, scale: Fraction
) -> DiagonalGaussian | PointMass:
    kinds: set[type] = set()

    def parameters(part: Tensor, _: Any) -> Tensor:
        q = autoencoder.encode(part)
        kinds.add(type(q))
        if isinstance(q, DiagonalGaussian):
            return torch.cat([q.mean, q.logvar], dim=1)
        if isinstance(q, PointMass):
            return q.latents
        raise ValueError(f"windows join a DiagonalGaussian or a PointMass, got a {type(q).__name__}")

    joined = windows.apply(parameters, images, scale=scale)
    return DiagonalGaussian.from_moments(joined) if kinds == {DiagonalGaussian} else PointMass(joined)
