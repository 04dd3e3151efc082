"""The transformer block of CLIP's two encoders (Radford et al. 2021, section 2.4).

    x = x + attention(norm1(x))
    x = x + MLP(norm2(x))

The norms come first, as in GPT-2. Attention is causal in the text encoder only; the blocks are otherwise
equal. Counterparts: `ResidualAttentionBlock` of OpenAI's `clip/model.py` and of open_clip, `CLIPEncoderLayer`
of transformers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_core.attention import MultiHeadAttention
from ldm_core.clip.config import Activation
from ldm_core.nn.linear import Linear


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x), the approximation of gelu in OpenAI's CLIP models."""
    return x * torch.sigmoid(1.702 * x)


class ResidualAttentionBlock(nn.Module):
    """(B, N, width) -> (B, N, width). With `causal`, a position attends only to itself and earlier ones."""

    def __init__(self, width: int, heads: int, activation: Activation, *, causal: bool) -> None:
        super().__init__()
        self.activation = quick_gelu if activation == "quick_gelu" else F.gelu
        self.norm1 = nn.LayerNorm(width)
        self.attn = MultiHeadAttention(width, heads, qkv_bias=True, causal=causal)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = Linear(width, 4 * width)
        self.fc2 = Linear(4 * width, width)

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        """hidden: (B, N), True for positions that no position attends to."""
        x = x + self.attn(self.norm1(x), hidden=hidden)
        return x + self.fc2(self.activation(self.fc1(self.norm2(x))))
