"""The KL autoencoder: images to a Gaussian over latents that are f times smaller, and latents to images.

Section 3.1 and appendix G of the latent diffusion paper (arXiv:2112.10752); the Gaussian and its KL
divergence follow Kingma and Welling 2014 (arXiv:1312.6114, appendix B). CompVis's counterparts are
`AutoencoderKL` and the `Encoder` and `Decoder` of `ldm.modules.diffusionmodules.model`. All norms have
epsilon 1e-6.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ldm_core.attention import MultiHeadAttention
from ldm_core.autoencoder.config import AutoencoderConfig
from ldm_core.autoencoder.gaussian import DiagonalGaussian
from ldm_core.nn.blocks import (
    Downsample,
    NormSilu,
    ResBlock,
    Upsample,
    fastest_layout,
    group_norm,
    norm_silu,
)

EPS = 1e-6


class AttentionBlock(nn.Module):
    """Single-head self-attention over the pixels of a feature map: (B, C, h, w) -> the same shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, EPS)
        self.attn = MultiHeadAttention(channels, heads=1, qkv_bias=True)

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, C, h, w) -> (B, h * w, C)
        return x + self.attn(tokens).transpose(1, 2).unflatten(2, (h, w))


class Level(nn.Module):
    """The residual blocks of one resolution, each optionally followed by attention, and the resampling."""

    def __init__(
        self, in_channels: int, out_channels: int, blocks: int, attention: bool, resample: nn.Module | None
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            ResBlock(in_channels if i == 0 else out_channels, out_channels, eps=EPS) for i in range(blocks)
        )
        self.attentions = nn.ModuleList(
            AttentionBlock(out_channels) for _ in range(blocks if attention else 0)
        )
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.blocks):
            x = block(x)
            if len(self.attentions):
                x = self.attentions[i](x)
        return x if self.resample is None else self.resample(x)


class Middle(nn.Sequential):
    """The middle of the network at the coarsest level: residual block, attention, residual block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.res1 = ResBlock(channels, channels, eps=EPS)
        self.attention = AttentionBlock(channels)
        self.res2 = ResBlock(channels, channels, eps=EPS)


class Encoder(nn.Module):
    """Images (B, 3, H, W) to moments (B, 2 * z_channels, H/f, W/f). `down` goes from fine to coarse."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        last = len(config.ch_mult) - 1
        self.conv_in = nn.Conv2d(config.in_channels, config.ch, 3, padding=1)
        channels = config.ch
        self.down = nn.ModuleList()
        for level, mult in enumerate(config.ch_mult):
            width = config.ch * mult
            resample = Downsample(width, asymmetric=True) if level < last else None
            self.down.append(
                Level(channels, width, config.num_res_blocks, config.has_attention(level), resample)
            )
            channels = width
        self.mid = Middle(channels)
        self.norm_silu: NormSilu = norm_silu
        self.norm_out = group_norm(channels, EPS)
        self.conv_out = nn.Conv2d(channels, 2 * config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(fastest_layout(x))
        for level in self.down:
            x = level(x)
        return self.conv_out(self.norm_silu(self.norm_out, self.mid(x)))


class Decoder(nn.Module):
    """Latents (B, z_channels, h, w) to images (B, 3, h*f, w*f). `up` goes from coarse to fine."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        channels = config.ch * config.ch_mult[-1]
        self.conv_in = nn.Conv2d(config.z_channels, channels, 3, padding=1)
        self.mid = Middle(channels)
        self.up = nn.ModuleList()
        for level, mult in reversed(list(enumerate(config.ch_mult))):
            width = config.ch * mult
            resample = Upsample(width) if level > 0 else None
            self.up.append(
                Level(channels, width, config.num_res_blocks + 1, config.has_attention(level), resample)
            )
            channels = width
        self.norm_silu: NormSilu = norm_silu
        self.norm_out = group_norm(channels, EPS)
        self.conv_out = nn.Conv2d(channels, config.out_ch, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(fastest_layout(z)))
        for level in self.up:
            x = level(x)
        return self.conv_out(self.norm_silu(self.norm_out, x))


class AutoencoderKL(nn.Module):
    """The encoder, the decoder, and the 1x1 convolutions between them and the latent space."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.z_channels, 2 * config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, 1)

    def encode(self, images: Tensor) -> DiagonalGaussian:
        """images (B, 3, H, W) in [-1, 1], H and W multiples of f -> q(z | images), (B, embed_dim, h, w)."""
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
        moments = self._rescue(self._moments(images), images, AutoencoderKL._moments)
        return DiagonalGaussian.from_moments(moments)

    def decode(self, z: Tensor) -> Tensor:
        """Unscaled latents z (B, embed_dim, h, w) -> images (B, 3, h*f, w*f), approximately in [-1, 1].

        The published SD autoencoders overflow in float16 for some latents and then give black images. Such
        images are decoded again in float32.
        """
        if z.ndim != 4 or z.shape[1] != self.config.embed_dim:
            raise ValueError(
                f"autoencoder: expected latents of (B, {self.config.embed_dim}, h, w), got {tuple(z.shape)}"
            )
        return self._rescue(self._decode(z), z, AutoencoderKL._decode)

    def _moments(self, images: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(images))

    def _decode(self, z: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(z))

    def _rescue(self, out: Tensor, x: Tensor, method: Callable[[AutoencoderKL, Tensor], Tensor]) -> Tensor:
        """`out`, with the rows that overflowed in float16 recomputed from x in float32 by `method`."""
        if out.dtype != torch.float16:
            return out
        bad = ~out.isfinite().flatten(1).all(dim=1)
        if not bad.any():
            return out
        wide = copy.deepcopy(self).float()
        return out.index_put((bad,), method(wide, x[bad].float()).to(out.dtype))

    def forward(self, z: Tensor) -> Tensor:
        return self.decode(z)
