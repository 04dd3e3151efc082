"""CodeFormer: restores a face by naming the codes that a clean picture of it would have.

Zhou et al. 2022, "Towards Robust Blind Face Restoration with Codebook Lookup Transformer" (arXiv:2206.11253).

    z = E(x)                                     encoder of a degraded face
    s_k = argmax_j T(z)_kj                       the transformer names code k  (section 3.2)
    z_q = e_s                                    instead of the nearest code, as in the autoencoder
    F_d <- F_d + w (alpha F_d + beta)            alpha, beta from [F_e, F_d]   (section 3.3, equation 5)

Encoder and generator use the blocks of the latent diffusion autoencoder (residual block, attention,
asymmetric downsampling, nearest upsampling), which are the same functions. Their arrangement differs: a
generator's level has as many residual blocks as an encoder's, not one more; only the coarsest level has
attention; there are no 1x1 convolutions around the codes; and no activation stands between the last norm and
the last convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_core.attention import MultiHeadAttention
from ldm_core.autoencoder.layers import EPS, AttentionBlock
from ldm_core.autoencoder.vq import look_up, nearest_codes
from ldm_core.nn.blocks import Downsample, ResBlock, Upsample, fastest_layout, group_norm
from ldm_core.nn.convolution import Conv3x3
from ldm_core.nn.linear import Linear
from ldm_core.restoration.codeformer.config import HEADS, CodeFormerConfig, FaceAutoencoderConfig
from ldm_core.restoration.inputs import require_faces, require_fraction, require_multiple

ADAIN_EPS = 1e-5
SLOPE = 0.2

Features = dict[int, Tensor]  # by level; 0 is the finest
Fuse = Callable[[int, Tensor], Tensor]  # (level, features of the generator) -> features


def _middle(channels: int) -> list[nn.Module]:
    res = [ResBlock(channels, channels, eps=EPS) for _ in range(2)]
    return [res[0], AttentionBlock(channels), res[1]]


def _level(in_channels: int, out_channels: int, blocks: int, attention: bool) -> list[nn.Module]:
    level: list[nn.Module] = []
    for i in range(blocks):
        level.append(ResBlock(in_channels if i == 0 else out_channels, out_channels, eps=EPS))
        if attention:
            level.append(AttentionBlock(out_channels))
    return level


class Encoder(nn.Module):
    """Pictures (B, 3, H, W) to features (B, code_dim, H/f, W/f), as one flat list of blocks."""

    def __init__(self, config: FaceAutoencoderConfig) -> None:
        super().__init__()
        last, channels = len(config.widths) - 1, config.ch
        self.ends: dict[int, int] = {}  # the index of a level's last block before downsampling -> level
        blocks: list[nn.Module] = [Conv3x3(3, channels)]
        for level, width in enumerate(config.widths):
            blocks += _level(channels, width, config.num_res_blocks, attention=level == last)
            channels = width
            if level < last:
                self.ends[len(blocks) - 1] = level
                blocks.append(Downsample(channels, asymmetric=True))
        blocks += [*_middle(channels), group_norm(channels, EPS), Conv3x3(channels, config.code_dim)]
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, keep: Collection[int] = ()) -> tuple[Tensor, Features]:
        """The features of the last block, and those at the end of the levels in `keep`."""
        kept: Features = {}
        x = fastest_layout(x)
        for i, block in enumerate(self.blocks):
            x = block(x)
            if self.ends.get(i) in keep:
                kept[self.ends[i]] = x
        return x, kept


class Generator(nn.Module):
    """Codes (B, code_dim, h, w) to pictures (B, 3, h*f, w*f), as one flat list of blocks."""

    def __init__(self, config: FaceAutoencoderConfig) -> None:
        super().__init__()
        last, channels = len(config.widths) - 1, config.widths[-1]
        self.starts: dict[int, int] = {}  # the index of a level's first residual block -> level
        blocks: list[nn.Module] = [Conv3x3(config.code_dim, channels), *_middle(channels)]
        for level in range(last, -1, -1):
            self.starts[len(blocks)] = level
            width = config.widths[level]
            blocks += _level(channels, width, config.num_res_blocks, attention=level == last)
            channels = width
            if level > 0:
                blocks.append(Upsample(channels))
        blocks += [group_norm(channels, EPS), Conv3x3(channels, 3)]
        self.blocks = nn.ModuleList(blocks)

    def forward(self, z: Tensor, fuse: Fuse | None = None) -> Tensor:
        """fuse: applied to the features after each level's first residual block."""
        x = fastest_layout(z)
        for i, block in enumerate(self.blocks):
            x = block(x)
            if fuse is not None and i in self.starts:
                x = fuse(self.starts[i], x)
        return x


class FaceAutoencoder(nn.Module):
    """The VQ autoencoder of faces (section 3.1): the first stage of CodeFormer, and its encoder and decoder.

    forward: pictures (B, 3, H, W) in [-1, 1], H and W multiples of f -> their reconstruction through the
    nearest codes, of the same shape.
    """

    config: FaceAutoencoderConfig

    def __init__(self, config: FaceAutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        bound = 1.0 / config.codes
        self.codebook = nn.Parameter(torch.empty(config.codes, config.code_dim).uniform_(-bound, bound))
        self.generator = Generator(config)

    def encode(self, x: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) -> features before quantisation (B, code_dim, H/f, W/f)."""
        require_multiple("face autoencoder", x, self.config.downsampling)
        return self.encoder(x)[0]

    def quantize(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, code_dim, h, w) -> (their nearest codes, of the same shape, indices (B, h, w))."""
        indices = nearest_codes(self.codebook, h.permute(0, 2, 3, 1))
        return look_up(self.codebook, indices), indices

    def decode(self, z: Tensor) -> Tensor:
        """Codes (B, code_dim, h, w) -> pictures (B, 3, h*f, w*f)."""
        return self.generator(z)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] -> their reconstructions, of the same shape."""
        return self.decode(self.quantize(self.encode(x))[0])


class PositionedAttention(MultiHeadAttention):
    """Self-attention in which positions are added to queries and keys, not to values."""

    def forward(self, x: Tensor, position: Tensor) -> Tensor:  # type: ignore[override]
        """x (B, N, channels), position (N, channels) -> (B, N, channels)."""
        placed = x + position
        q, k, v = (self._split(to(y)) for to, y in ((self.to_q, placed), (self.to_k, placed), (self.to_v, x)))
        return self.to_out(self.attention(q, k, v).transpose(1, 2).flatten(2))


class TransformerLayer(nn.Module):
    """(B, N, width) -> (B, N, width); norms come first, and the hidden width is twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = PositionedAttention(width, HEADS, qkv_bias=True)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = Linear(width, 2 * width)
        self.fc2 = Linear(2 * width, width)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), position)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


def _conv_pair(channels: int) -> nn.Sequential:
    return nn.Sequential(Conv3x3(channels, channels), nn.LeakyReLU(SLOPE), Conv3x3(channels, channels))


class Fusion(nn.Module):
    """Controllable feature transformation: features of encoder and generator, each (B, C, h, w) -> the same.

    dec + w * (dec * scale(e) + shift(e)), where e is a residual block of both, the encoder's first.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.res = ResBlock(2 * channels, channels, eps=EPS)
        self.scale = _conv_pair(channels)
        self.shift = _conv_pair(channels)

    def forward(self, enc: Tensor, dec: Tensor, w: float) -> Tensor:
        e = self.res(torch.cat([enc, dec], dim=1))
        return dec + w * (dec * self.scale(e) + self.shift(e))


def adapt(codes: Tensor, features: Tensor) -> Tensor:
    """The codes with the mean and standard deviation of the features, per channel: both (B, C, h, w).

    Adaptive instance normalisation (Huang and Belongie 2017, arXiv:1703.06868, equation 8); the variances
    have N - 1 in the denominator and 1e-5 added.
    """
    mean, std = _statistics(codes)
    wanted_mean, wanted_std = _statistics(features)
    return (codes - mean) / std * wanted_std + wanted_mean


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over the pixels, each (B, C, 1, 1)."""
    var, mean = torch.var_mean(x, dim=(2, 3), keepdim=True)
    return mean, (var + ADAIN_EPS).sqrt()


class CodeFormer(FaceAutoencoder):
    """A degraded face (B, 3, size, size) in [-1, 1] to the restored one, of the same shape and range."""

    config: CodeFormerConfig

    def __init__(self, config: CodeFormerConfig) -> None:
        super().__init__(config)
        self.position_embedding = nn.Parameter(torch.zeros(config.tokens, config.width))
        self.project = Linear(config.code_dim, config.width)
        self.layers = nn.ModuleList(TransformerLayer(config.width) for _ in range(config.layers))
        self.norm_out = nn.LayerNorm(config.width)
        self.to_logits = Linear(config.width, config.codes, bias=False)
        levels = {size: level for level, size in enumerate(config.level_sizes)}
        self.fused_levels = {levels[size]: str(size) for size in config.fuse}
        self.fuse = nn.ModuleDict({str(s): Fusion(config.widths[levels[s]]) for s in config.fuse})

    def encode(self, x: Tensor) -> Tensor:
        """Pictures (B, 3, S, S) in [-1, 1] -> features (B, code_dim, h, w), S being `config.size`."""
        require_faces("CodeFormer", x, self.config.size)
        return self.encoder(x)[0]

    def logits(self, features: Tensor) -> Tensor:
        """The encoder's features (B, code_dim, h, w) -> logits of the codes (B, h * w, codes), row by row."""
        x = self.project(features.flatten(2).transpose(1, 2))  # (B, code_dim, h, w) -> (B, N, width)
        for layer in self.layers:
            x = layer(x, self.position_embedding)
        return self.to_logits(self.norm_out(x))

    def predict(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures (B, 3, size, size) -> (logits of the codes (B, h * w, codes), features of the encoder)."""
        features = self.encode(x)
        return self.logits(features), features

    def forward(self, x: Tensor, w: float = 0.5, adain: bool = True) -> Tensor:
        """The restored faces.

        w: fidelity in [0, 1]: 0 trusts the codes alone, 1 follows the input most closely.
        adain: give the codes the mean and standard deviation of the input's features.
        Raises ValueError for pictures of another size, or for a w outside [0, 1].
        """
        require_faces("CodeFormer", x, self.config.size)
        require_fraction("CodeFormer", "w", w)
        features, kept = self.encoder(x, self.fused_levels if w > 0 else ())
        names = self.logits(features).argmax(dim=2).unflatten(1, features.shape[2:])  # (B, h, w)
        codes = look_up(self.codebook, names)
        codes = adapt(codes, features) if adain else codes

        def fuse(level: int, dec: Tensor) -> Tensor:
            if level not in kept:
                return dec
            return self.fuse[self.fused_levels[level]](kept.pop(level), dec, w)

        return self.generator(codes, fuse)
