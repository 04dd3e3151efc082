"""Objects with boxes in a U-Net: tokens of boxes and words, to which the pixels attend through a gate.

Li et al. 2023, "GLIGEN: Open-Set Grounded Text-to-Image Generation" (arXiv:2301.07093, equations 5 to 8). An
object's token is an MLP's output for its words' vector and Fourier features of its box. In each transformer
block, between self- and cross-attention, pixels v attend to themselves and the objects o:

    v + tanh(gamma) (attention over [v, o])[pixels]

gamma starts at 0. GLIGEN's counterparts are `PositionNet` and `GatedSelfAttentionDense`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ldm_core.attention import MultiHeadAttention
from ldm_core.nn.kept_context import KeptContext
from ldm_core.nn.linear import Linear
from ldm_core.unet.feed_forward import FeedForward

FREQUENCIES = 8
POSITION_DIM = FREQUENCIES * 2 * 4  # sine and cosine of four coordinates
HIDDEN = 512


class GroundedContext:
    """A context and objects' tokens, which go through a U-Net with gated self-attention as one value.

    context: (B, M, width), or its `KeptContext`. objects: (B, N, width), of `PositionNet`.
    Raises ValueError if their rows or widths differ.
    """

    def __init__(self, context: Tensor | KeptContext, objects: Tensor) -> None:
        rows, _, width = context.shape
        if objects.ndim != 3 or (objects.shape[0], objects.shape[2]) != (rows, width):
            raise ValueError(f"expected objects of ({rows}, N, {width}), got {tuple(objects.shape)}")
        self.context, self.objects = context, objects

    @property
    def tensor(self) -> Tensor:
        """The context (B, M, width) without the objects."""
        return self.context.tensor if isinstance(self.context, KeptContext) else self.context

    @property
    def shape(self) -> Sequence[int]:
        """Of the context."""
        return self.context.shape


class GatedSelfAttention(nn.Module):
    """Self-attention over pixels and objects and an MLP, both gated: (B, N, channels) -> the same.

    A new layer's gates are closed: it returns its input.
    """

    def __init__(self, channels: int, heads: int, object_dim: int) -> None:
        super().__init__()
        self.linear = Linear(object_dim, channels)
        self.attn = MultiHeadAttention(channels, heads)
        self.ff = FeedForward(channels)
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.alpha_attn = nn.Parameter(torch.zeros(()))
        self.alpha_dense = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, objects: Tensor) -> Tensor:
        """x: (B, N, channels), pixels. objects: (B, M, object_dim)."""
        both = torch.cat([x, self.linear(objects)], dim=1)  # (B, N + M, channels)
        x = x + self.alpha_attn.tanh() * self.attn(self.norm1(both))[:, : x.shape[1]]
        return x + self.alpha_dense.tanh() * self.ff(self.norm2(x))


class PositionNet(nn.Module):
    """Boxes and words to objects' tokens. Missing objects have learned vectors, and stay in the sequence."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.null_positive_feature = nn.Parameter(torch.zeros(width))  # of words
        self.null_position_feature = nn.Parameter(torch.zeros(POSITION_DIM))
        self.linears = nn.Sequential(
            nn.Linear(width + POSITION_DIM, HIDDEN),
            nn.SiLU(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.SiLU(),
            nn.Linear(HIDDEN, width),
        )

    def forward(self, boxes: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        """The tokens (B, N, width).

        boxes: (B, N, 4), the corners x0, y0, x1, y1 in [0, 1]. words: (B, N, width). mask: (B, N) of bool,
        False for missing objects, whose boxes and words have no effect.
        """
        weight = self.null_positive_feature
        there = mask[..., None].to(weight.device)
        words = torch.where(there, words.to(weight), weight)
        places = torch.where(there, fourier_features(boxes).to(weight), self.null_position_feature)
        tokens: Tensor = self.linears(torch.cat([words, places], dim=-1))
        return tokens


def fourier_features(boxes: Tensor) -> Tensor:
    """(..., 4) -> (..., 64): for each frequency 100^(i / 8), i = 0 … 7, four sines and four cosines."""
    frequencies = 100.0 ** (torch.arange(FREQUENCIES, device=boxes.device) / FREQUENCIES)
    angles = boxes.float()[..., None, :] * frequencies[:, None]  # (..., 8, 4)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)
