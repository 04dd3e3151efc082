"""Attention over the pixels of a feature map: the spatial transformer, and self-attention without context.

The spatial transformer is how a condition enters the U-Net (arXiv:2112.10752, section 3.3 and equation 17).
CompVis's counterparts are `SpatialTransformer` of `ldm.modules.attention`, and `AttentionBlock` of
`openaimodel` in networks without cross-attention.
"""

from __future__ import annotations

from torch import Tensor, nn

from ldm_core.attention import MultiHeadAttention
from ldm_core.nn.blocks import group_norm
from ldm_core.nn.kept_context import KeptContext
from ldm_core.nn.linear import Linear
from ldm_core.unet.feed_forward import FeedForward
from ldm_core.unet.grounding import GatedSelfAttention, GroundedContext


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention and an MLP, each with layer norm before and a residual connection.

    gated: a gated self-attention after the first, for contexts with objects (`GroundedContext`).
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        context_dim: int,
        *,
        disable_self_attention: bool = False,
        gated: bool = False,
    ) -> None:
        super().__init__()
        self.disable_self_attention = disable_self_attention
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = MultiHeadAttention(
            channels, heads, context_channels=context_dim if disable_self_attention else None
        )
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = MultiHeadAttention(channels, heads, context_channels=context_dim)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)
        self.fuser = GatedSelfAttention(channels, heads, context_dim) if gated else None

    def forward(self, x: Tensor, context: Tensor | KeptContext | GroundedContext) -> Tensor:
        objects = context.objects if isinstance(context, GroundedContext) else None
        context = context.context if isinstance(context, GroundedContext) else context
        x = x + self.attn1(self.norm1(x), context if self.disable_self_attention else None)
        if self.fuser is not None and objects is not None:
            x = self.fuser(x, objects)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the pixels of a feature map: (B, C, h, w), (B, M, context_dim) -> (B, C, h, w).

    SD1 stores the projections as 1x1 convolutions, SD2 as linear layers. Both compute the same function; here
    they are always linear.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        depth: int,
        context_dim: int,
        *,
        disable_self_attention: bool = False,
        gated: bool = False,
    ) -> None:
        super().__init__()
        self.norm = group_norm(channels, eps=1e-6)
        self.proj_in = Linear(channels, channels)
        self.blocks = nn.ModuleList(
            TransformerBlock(
                channels, heads, context_dim, disable_self_attention=disable_self_attention, gated=gated
            )
            for _ in range(depth)
        )
        self.proj_out = Linear(channels, channels)

    def forward(self, x: Tensor, context: Tensor | KeptContext | GroundedContext) -> Tensor:
        h, w = x.shape[-2:]
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, C, h, w) -> (B, h * w, C)
        tokens = self.proj_in(tokens)
        for block in self.blocks:
            tokens = block(tokens, context)
        tokens = self.proj_out(tokens)
        return x + tokens.transpose(1, 2).unflatten(2, (h, w))  # (B, h * w, C) -> (B, C, h, w)


class SelfAttention(nn.Module):
    """Self-attention over the pixels of a feature map, for a U-Net without context: (B, C, h, w) -> the same.

    CompVis's counterpart is `AttentionBlock` in `openaimodel`.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, eps=1e-5)
        self.attn = MultiHeadAttention(channels, heads, qkv_bias=True)

    def forward(self, x: Tensor, context: None = None) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, C, h, w) -> (B, h * w, C)
        return x + self.attn(tokens).transpose(1, 2).unflatten(2, x.shape[2:])
