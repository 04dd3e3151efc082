"""The encoder and the decoder, which all autoencoders of latent diffusion share, and their blocks.

Appendix G of the latent diffusion paper (arXiv:2112.10752), after VQGAN (Esser et al. 2021, arXiv:2012.09841,
table 7). CompVis's counterparts are `Encoder` and `Decoder` of `ldm.modules.diffusionmodules.model`. All
norms have epsilon 1e-6.
"""

from __future__ import annotations

from torch import Tensor, nn

from ldm_core.attention import MultiHeadAttention
from ldm_core.autoencoder.config import AutoencoderConfig
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
    """The middle of the network at the coarsest level: residual block, optional attention, residual block."""

    def __init__(self, channels: int, attention: bool) -> None:
        super().__init__()
        self.res1 = ResBlock(channels, channels, eps=EPS)
        if attention:
            self.attention = AttentionBlock(channels)
        self.res2 = ResBlock(channels, channels, eps=EPS)


class Encoder(nn.Module):
    """Images (B, 3, H, W) to features (B, out_channels, H/f, W/f). `down` goes from fine to coarse."""

    def __init__(self, config: AutoencoderConfig, out_channels: int, middle_attention: bool = True) -> None:
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
        self.mid = Middle(channels, middle_attention)
        self.norm_silu: NormSilu = norm_silu
        self.norm_out = group_norm(channels, EPS)
        self.conv_out = nn.Conv2d(channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(fastest_layout(x))
        for level in self.down:
            x = level(x)
        return self.conv_out(self.norm_silu(self.norm_out, self.mid(x)))


class Decoder(nn.Module):
    """Latents (B, z_channels, h, w) to images (B, 3, h*f, w*f). `up` goes from coarse to fine."""

    def __init__(self, config: AutoencoderConfig, middle_attention: bool = True) -> None:
        super().__init__()
        channels = config.ch * config.ch_mult[-1]
        self.conv_in = nn.Conv2d(config.z_channels, channels, 3, padding=1)
        self.mid = Middle(channels, middle_attention)
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
