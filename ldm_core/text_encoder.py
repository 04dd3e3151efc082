"""CLIP's text transformer: token ids to one vector a token (Radford et al. 2021, arXiv:2103.00020).

A GPT-2-like stack with causal attention and the norm before each sublayer. SD1 takes the last layer's
output, SD2 the one before; both after the final norm. Counterparts: `FrozenCLIPEmbedder` (which wraps
transformers' `CLIPTextModel`) and `FrozenOpenCLIPEmbedder` of CompVis and Stability AI.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_core.attention import MultiHeadAttention
from ldm_core.config import Activation, TextEncoderConfig


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x): the approximation of gelu that OpenAI trained CLIP with."""
    return x * torch.sigmoid(1.702 * x)


class TextBlock(nn.Module):
    """Causal self-attention and an MLP, each normalised first and added to its input."""

    def __init__(self, width: int, heads: int, activation: Activation) -> None:
        super().__init__()
        self.activation = quick_gelu if activation == "quick_gelu" else F.gelu
        self.norm1 = nn.LayerNorm(width)
        self.attn = MultiHeadAttention(width, heads, qkv_bias=True, causal=True)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(self.activation(self.fc1(self.norm2(x))))


class CLIPTextEncoder(nn.Module):
    """Token ids (B, N) to hidden states (B, N, width)."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.position_embedding = nn.Embedding(config.context_length, config.width)
        self.blocks = nn.ModuleList(
            TextBlock(config.width, config.heads, config.activation) for _ in range(config.layers)
        )
        self.final_norm = nn.LayerNorm(config.width)
        self.text_projection: nn.Parameter | None = None
        self.logit_scale: nn.Parameter | None = None
        if config.projection_dim is not None:
            # Not used to condition a U-Net; open_clip's files hold them, so a saved model has them too.
            scale = config.width**-0.5
            self.text_projection = nn.Parameter(scale * torch.randn(config.width, config.projection_dim))
            self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    def forward(self, tokens: Tensor, clip_skip: int | None = None) -> Tensor:
        """Hidden states after the final norm.

        tokens: LongTensor (B, N), N at most `context_length`. clip_skip: how many of the final blocks to
        leave out, by default the model's own (SD1: 0, SD2: 1); "clip skip 2" of the popular web UIs,
        which count from 1, is clip_skip=1 here, as in diffusers. Returns (B, N, width).
        """
        skip = self.config.clip_skip if clip_skip is None else clip_skip
        if not 0 <= skip < len(self.blocks):
            raise ValueError(f"clip_skip must be in 0..{len(self.blocks) - 1}, not {skip}")
        if tokens.ndim != 2 or tokens.shape[1] > self.config.context_length:
            raise ValueError(
                f"expected tokens of (B, N), N <= {self.config.context_length}, got {tuple(tokens.shape)}"
            )
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.token_embedding(tokens) + self.position_embedding(positions)
        for block in self.blocks[: len(self.blocks) - skip]:
            x = block(x)
        return self.final_norm(x)
