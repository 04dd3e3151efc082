"""Encode and decode large images in tiles, which needs the memory of one tile in addition to the result.

Neighbouring tiles overlap and are blended with linear ramps, so that there are no visible seams. The result
is close to the untiled result but not equal, because group norm and the attention of the middle block see one
tile instead of the whole image. The overlap and the ramps make this difference smooth.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor, nn

from ldm_core.autoencoder.gaussian import DiagonalGaussian
from ldm_core.autoencoder.kl import AutoencoderKL
from ldm_core.autoencoder.vq import AutoencoderVQ, PointMass

Autoencoder = AutoencoderKL | AutoencoderVQ


def _starts(size: int, tile: int, overlap: int) -> list[int]:
    """Start positions of tiles that cover `size` and overlap by at least `overlap`."""
    if size <= tile:
        return [0]
    return [*range(0, size - tile, tile - overlap), size - tile]


def _ramp(size: int, overlap: int, *, first: bool, last: bool) -> Tensor:
    """The weights of a tile along one axis: 1 inside, decreasing linearly over the overlap at inner edges."""
    weights = torch.ones(size, dtype=torch.float32)
    rise = (torch.arange(overlap, dtype=torch.float32) + 0.5) / max(overlap, 1)
    if not first:
        weights[:overlap] *= rise
    if not last:
        weights[size - overlap :] *= rise.flip(0)
    return weights


def tiled(
    function: Callable[[Tensor], Tensor], x: Tensor, *, tile: int, overlap: int, scale: Fraction
) -> Tensor:
    """Apply `function` to overlapping tiles of x (B, C, h, w) and blend the results.

    scale: output pixels per input pixel along each axis. tile, overlap: in input pixels; they must correspond
    to whole numbers of output pixels. Raises ValueError otherwise.
    """
    if not 0 <= overlap < tile:
        raise ValueError(f"tiles of {tile} need an overlap in 0..{tile - 1}, got {overlap}")
    if any((length * scale).denominator != 1 for length in (tile, overlap, x.shape[2], x.shape[3])):
        raise ValueError(
            f"tile {tile}, overlap {overlap} and size {tuple(x.shape[2:])} must be multiples of {1 / scale}"
        )
    rows, columns = _starts(x.shape[2], tile, overlap), _starts(x.shape[3], tile, overlap)
    total: Tensor | None = None
    for top in rows:
        for left in columns:
            out = function(x[:, :, top : top + tile, left : left + tile])
            if total is None:
                size = (int(x.shape[2] * scale), int(x.shape[3] * scale))
                wide = torch.promote_types(out.dtype, torch.float32)
                total = torch.zeros(*out.shape[:2], *size, dtype=wide, device=out.device)
                weight = torch.zeros(size, dtype=wide, device=out.device)
            soft = int(overlap * scale)
            vertical = _ramp(out.shape[2], soft, first=top == 0, last=top == rows[-1])
            horizontal = _ramp(out.shape[3], soft, first=left == 0, last=left == columns[-1])
            share = (vertical[:, None] * horizontal).to(out.device)
            y, z = int(top * scale), int(left * scale)
            total[:, :, y : y + out.shape[2], z : z + out.shape[3]] += share * out
            weight[y : y + out.shape[2], z : z + out.shape[3]] += share
    assert total is not None
    return (total / weight).to(x.dtype)


def decode_tiled(autoencoder: Autoencoder, z: Tensor, *, tile: int = 64, overlap: int = 16) -> Tensor:
    """`autoencoder.decode` in tiles of `tile` latent pixels: z (B, C, h, w) -> images (B, 3, h*f, w*f)."""
    f = Fraction(autoencoder.config.downsampling)
    return tiled(autoencoder.decode, z, tile=tile, overlap=overlap, scale=f)


def encode_tiled(
    autoencoder: Autoencoder, images: Tensor, *, tile: int = 512, overlap: int = 128
) -> DiagonalGaussian | PointMass:
    """`autoencoder.encode` in tiles of `tile` pixels: (B, 3, H, W) -> q(z | images), (B, C, H/f, W/f)."""
    f = Fraction(1, autoencoder.config.downsampling)
    if isinstance(autoencoder, AutoencoderVQ):
        encode = autoencoder.encode
        return PointMass(tiled(lambda x: encode(x).mode(), images, tile=tile, overlap=overlap, scale=f))

    def moments(x: Tensor) -> Tensor:
        q = autoencoder.encode(x)
        return torch.cat([q.mean, q.logvar], dim=1)

    return DiagonalGaussian.from_moments(tiled(moments, images, tile=tile, overlap=overlap, scale=f))


class TiledAutoencoder(nn.Module):
    """An autoencoder that works in tiles. Images of at most one tile give the wrapped autoencoder's result.

        model = dataclasses.replace(model, autoencoder=TiledAutoencoder(model.autoencoder))

    tile, overlap: in latent pixels, for encoding and decoding.
    """

    def __init__(self, autoencoder: Autoencoder, *, tile: int = 64, overlap: int = 16) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.tile = tile
        self.overlap = overlap

    def encode(self, images: Tensor) -> DiagonalGaussian | PointMass:
        """As the `encode` of the wrapped autoencoder."""
        f = self.autoencoder.config.downsampling
        return encode_tiled(self.autoencoder, images, tile=self.tile * f, overlap=self.overlap * f)

    def decode(self, z: Tensor) -> Tensor:
        """As the `decode` of the wrapped autoencoder."""
        return decode_tiled(self.autoencoder, z, tile=self.tile, overlap=self.overlap)
