"""What the autoencoders share: the networks, the checks of shapes, and the rescue of float16 overflow."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ldm_core.autoencoder.config import AutoencoderConfig
from ldm_core.autoencoder.layers import Decoder, Encoder


class AutoencoderBase(nn.Module):
    """The encoder, the decoder, and the 1x1 convolutions between them and the latent space.

    tensors: the number of latent-shaped tensors (B, embed_dim, h, w) that the encoder outputs.
    """

    def __init__(self, config: AutoencoderConfig, tensors: int, middle_attention: bool = True) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, tensors * config.z_channels, middle_attention)
        self.decoder = Decoder(config, middle_attention)
        self.quant_conv = nn.Conv2d(tensors * config.z_channels, tensors * config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, 1)

    def decode(self, z: Tensor) -> Tensor:
        """Unscaled latents z (B, embed_dim, h, w) -> images (B, 3, h*f, w*f), approximately in [-1, 1].

        The published SD autoencoders overflow in float16 for some latents and then give black images. Such
        images are decoded again in float32.
        """
        self._require_latents(z)
        return self._rescue(self._decode(z), z, AutoencoderBase._decode)

    def forward(self, z: Tensor) -> Tensor:
        return self.decode(z)

    def _encode(self, images: Tensor) -> Tensor:
        """images (B, 3, H, W) -> the encoder's output (B, tensors * embed_dim, H/f, W/f)."""
        f = self.config.downsampling
        if images.ndim != 4 or images.shape[1] != self.config.in_channels:
            raise ValueError(
                f"autoencoder: expected images of (B, {self.config.in_channels}, H, W), "
                f"got {tuple(images.shape)}"
            )
        if images.shape[2] % f or images.shape[3] % f:
            raise ValueError(
                f"autoencoder: H and W must be multiples of {f}, got {images.shape[2]} and {images.shape[3]}"
            )
        return self._rescue(self._moments(images), images, AutoencoderBase._moments)

    def _require_latents(self, z: Tensor) -> None:
        if z.ndim != 4 or z.shape[1] != self.config.embed_dim:
            raise ValueError(
                f"autoencoder: expected latents of (B, {self.config.embed_dim}, h, w), got {tuple(z.shape)}"
            )

    def _moments(self, images: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(images))

    def _decode(self, z: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(z))

    def _rescue(self, out: Tensor, x: Tensor, method: Callable[[AutoencoderBase, Tensor], Tensor]) -> Tensor:
        """`out`, with the rows that overflowed in float16 recomputed from x in float32 by `method`."""
        if out.dtype != torch.float16:
            return out
        bad = ~out.isfinite().flatten(1).all(dim=1)
        if not bad.any():
            return out
        wide = copy.deepcopy(self).float()
        return out.index_put((bad,), method(wide, x[bad].float()).to(out.dtype))
