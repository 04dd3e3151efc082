"""The first half of the U-Net: time embedding, the levels on the way down, and the middle block.

Residual blocks take the timestep embedding, spatial transformers the context (section 3.3 and figure 3 of
arXiv:2112.10752). The outputs of each level are skip connections to the same level on the way up. A
ControlNet (`ldm_core.control`) is a copy of this half. CompVis's counterparts are the `time_embed`,
`input_blocks` and `middle_block` of `UNetModel`, whose flat list of blocks is grouped by level here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_core.nn.blocks import (
    Downsample,
    ResampleBlock,
    ResBlock,
    fastest_layout,
    halve,
    timestep_embedding,
)
from ldm_core.nn.kept_context import KeptContext
from ldm_core.unet.config import UNetConfig
from ldm_core.unet.grounding import GroundedContext
from ldm_core.unet.residuals import Residuals, plus
from ldm_core.unet.transformer import SelfAttention, SpatialTransformer

# (B, M, context_dim), which may have objects; None in a U-Net without cross-attention
Context = Tensor | KeptContext | GroundedContext | None


class UNetBlock(nn.Module):
    """A residual block, followed by attention on some levels."""

    def __init__(self, res: ResBlock, attention: SpatialTransformer | SelfAttention | None) -> None:
        super().__init__()
        self.res = res
        self.attention = attention

    def forward(self, x: Tensor, emb: Tensor, context: Context) -> Tensor:
        x = self.res(x, emb)
        return x if self.attention is None else self.attention(x, context)


class DownLevel(nn.Module):
    """The blocks of one resolution on the way down, and the downsampling unless it is the coarsest."""

    def __init__(self, blocks: list[UNetBlock], resample: Downsample | ResampleBlock | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.resample = resample

    def forward(
        self, x: Tensor, emb: Tensor, context: Context, feature: Tensor | None = None
    ) -> list[Tensor]:
        """The outputs of the blocks and the downsampling, in order: the skip connections.

        feature: added to the output of the last block, before the downsampling.
        """
        outputs = []
        for block in self.blocks:
            x = block(x, emb, context)
            outputs.append(x)
        if feature is not None:
            outputs[-1] = x = plus(x, feature)
        if self.resample is not None:
            outputs.append(resampled(self.resample, x, emb))
        return outputs


def resampled(resample: nn.Module, x: Tensor, emb: Tensor) -> Tensor:
    result: Tensor = resample(x, emb) if isinstance(resample, ResampleBlock) else resample(x)
    return result


class Middle(nn.Module):
    """The middle block: residual block, attention, residual block."""

    def __init__(self, res1: ResBlock, attention: SpatialTransformer | SelfAttention, res2: ResBlock) -> None:
        super().__init__()
        self.res1 = res1
        self.attention = attention
        self.res2 = res2

    def forward(self, x: Tensor, emb: Tensor, context: Context) -> Tensor:
        return self.res2(self.attention(self.res1(x, emb), context), emb)


class MLP(nn.Module):
    """Linear, SiLU, linear: the MLP of the timestep embedding and of a vector condition."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(in_channels, out_channels)
        self.linear2 = nn.Linear(out_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(F.silu(self.linear1(x)))


class Encoder(nn.Module):
    """Features of a noisy latent, level by level and in the middle. `down` is ordered from fine to coarse."""

    PART = "unet"  # in messages

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        self.time_embed = MLP(config.model_channels, self._time_channels)
        self.label_emb: nn.Module | None = None
        if config.num_classes is not None:
            self.label_emb = nn.Embedding(config.num_classes, self._time_channels)
        elif config.adm_in_channels is not None:
            self.label_emb = MLP(config.adm_in_channels, self._time_channels)

        self.conv_in = nn.Conv2d(config.in_channels, config.model_channels, 3, padding=1)
        widths = [config.model_channels * mult for mult in config.channel_mult]
        last = len(widths) - 1

        channels = config.model_channels
        self.skip_channels = [channels]  # of the skip connections, in their order
        self.down = nn.ModuleList()
        for level, width in enumerate(widths):
            blocks = []
            for _ in range(config.num_res_blocks):
                blocks.append(self._block(channels, width, level))
                channels = width
                self.skip_channels.append(channels)
            if level < last:
                self.skip_channels.append(channels)
            self.down.append(DownLevel(blocks, self._downsampling(channels) if level < last else None))

        self.mid = Middle(
            self._res(channels, channels), self._attention(channels), self._res(channels, channels)
        )

    @property
    def _time_channels(self) -> int:
        return 4 * self.config.model_channels

    def _res(self, in_channels: int, out_channels: int) -> ResBlock:
        scale_shift = self.config.use_scale_shift_norm
        return ResBlock(in_channels, out_channels, time_channels=self._time_channels, scale_shift=scale_shift)

    def _downsampling(self, channels: int) -> Downsample | ResampleBlock:
        return self._resample_block(channels, halve) if self.config.resblock_updown else Downsample(channels)

    def _resample_block(self, channels: int, resample: Callable[[Tensor], Tensor]) -> ResampleBlock:
        time, scale_shift = self._time_channels, self.config.use_scale_shift_norm
        return ResampleBlock(channels, resample, time_channels=time, scale_shift=scale_shift)

    def _attention(self, channels: int, level: int | None = None) -> SpatialTransformer | SelfAttention:
        config = self.config
        if config.context_dim is None:
            return SelfAttention(channels, config.heads(channels))
        disabled = config.disable_self_attentions
        return SpatialTransformer(
            channels,
            config.heads(channels),
            config.transformer_depth,
            config.context_dim,
            disable_self_attention=level is not None and bool(disabled) and disabled[level],
            gated=config.gated_self_attention,
        )

    def _block(self, in_channels: int, out_channels: int, level: int) -> UNetBlock:
        attends = level in self.config.attention_levels
        return UNetBlock(
            self._res(in_channels, out_channels), self._attention(out_channels, level) if attends else None
        )

    def enter(self, x: Tensor, t: Tensor | float, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The input of the levels: features (B, model_channels, h, w), time embedding (B, channels)."""
        emb = self.time_embed(timestep_embedding(as_tensor(t, x), self.config.model_channels).to(x))
        if self.label_emb is not None:
            emb = emb + self.label_emb(y)
        # Every residual block projects the activated embedding.
        return self.conv_in(fastest_layout(x)), F.silu(emb)

    def encode(
        self, x: Tensor, emb: Tensor, context: Context, residuals: Residuals | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """(the skip connections, the output of the middle block) for the two results of `enter`.

        residuals: its `features` are added to the last block of each level; the rest is for the way up.
        """
        skips = [x]
        features = residuals.per_level(len(self.down)) if residuals is not None else [None] * len(self.down)
        for level, feature in zip(self.down, features):
            skips.extend(level(skips[-1], emb, context, feature))
        return skips, self.mid(skips[-1], emb, context)

    def _check(self, x: Tensor, t: Tensor | float, context: Context, y: Tensor | None) -> None:
        config, f = self.config, self.config.downsampling
        if x.ndim != 4 or x.shape[1] != config.in_channels:
            raise ValueError(
                f"{self.PART}: expected x of (B, {config.in_channels}, h, w), got {tuple(x.shape)}"
            )
        if x.shape[2] % f or x.shape[3] % f:
            raise ValueError(
                f"{self.PART}: h and w must be multiples of {f}, got {x.shape[2]} and {x.shape[3]}"
            )
        shape = None if context is None else tuple(context.shape)
        if config.context_dim is None:
            if shape is not None:
                raise ValueError(f"{self.PART}: this model has no cross-attention, got context of {shape}")
        elif shape is None or len(shape) != 3 or (shape[0], shape[2]) != (x.shape[0], config.context_dim):
            wanted = f"({x.shape[0]}, M, {config.context_dim})"
            raise ValueError(f"{self.PART}: expected context of {wanted}, got {shape}")
        if isinstance(context, GroundedContext) and not config.gated_self_attention:
            raise ValueError(
                f"{self.PART}: this model has no gated self-attention, got a context with objects"
            )
        _check_timestep(self.PART, t, x.shape[0])
        if (y is None) != (self.label_emb is None):
            wanted = "no class labels y" if self.label_emb is None else "class labels y"
            raise ValueError(f"{self.PART}: this model takes {wanted}, got {'none' if y is None else 'some'}")


def as_tensor(t: Tensor | float, x: Tensor) -> Tensor:
    """A timestep as a tensor (B,) on the device of x, where it is made without a copy."""
    if isinstance(t, Tensor):
        return t
    return torch.full((x.shape[0],), float(t), dtype=torch.float32, device=x.device)


def _check_timestep(part: str, t: Tensor | float, rows: int) -> None:
    """Check a timestep. The values of a tensor are not read, since that would wait for the device."""
    if not isinstance(t, Tensor):
        # A compiler has a symbol for a number that differs from call to call.
        number = torch.compiler.is_compiling() or (isinstance(t, Real) and math.isfinite(t))
        if not number:
            raise ValueError(f"{part}: expected t as a finite number or a tensor ({rows},), got {t!r}")
    elif t.shape != (rows,):
        raise ValueError(f"{part}: expected t as a number or ({rows},), got {tuple(t.shape)}")
    elif t.is_complex() or t.dtype == torch.bool:
        raise ValueError(f"{part}: expected t as whole or floating-point numbers, got {t.dtype}")
