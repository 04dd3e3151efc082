"""The block that both of CLIP's transformers are made of (Radford et al. 2021, section 2.4).

Attention and a two-layer MLP, each normalised first and added to its input, as in GPT-2. The text encoder's
attention is causal, the image encoder's is not; nothing else differs. Counterparts: `ResidualAttentionBlock`
of OpenAI's `clip/model.py` and of open_clip, `CLIPEncoderLayer` of transformers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_core.attention import MultiHeadAttention
from ldm_core.clip.config import Activation


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x): the approximation of gelu that OpenAI trained CLIP with."""
    return x * torch.sigmoid(1.702 * x)


class ResidualAttentionBlock(nn.Module):
    """(B, N, width) -> the same. With `causal`, a position sees only those up to itself."""

    def __init__(self, width: int, heads: int, activation: Activation, *, causal: bool) -> None:
        super().__init__()
        self.activation = quick_gelu if activation == "quick_gelu" else F.gelu
        self.norm1 = nn.LayerNorm(width)
        self.attn = MultiHeadAttention(width, heads, qkv_bias=True, causal=causal)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(self.activation(self.fc1(self.norm2(x))))
