"""The transformer of the first latent diffusion models: token ids to one vector per token.

tau_theta of the latent diffusion paper (arXiv:2112.10752, sections 3.3 and E.2.1). The name comes from its
tokenizer: unlike BERT (arXiv:1810.04805), it was trained together with the U-Net, its norms come first, and
it has no segments. Every position attends to all others, padding included.

    x = token embedding + position embedding
    x = x + attention(norm1(x)),  x = x + MLP(norm2(x))        in each block
    result = final norm(x)

Counterparts: `BERTEmbedder` and `TransformerWrapper` of CompVis's `ldm.modules`, `LDMBertModel` of diffusers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_core.attention import MultiHeadAttention
from ldm_core.bert.config import HEAD_SIZE, HEADS, BERTConfig
from ldm_core.nn.linear import Linear


class Block(nn.Module):
    """(B, N, width) -> (B, N, width). The heads' size does not depend on the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = MultiHeadAttention(width, HEADS, inner_channels=HEADS * HEAD_SIZE)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = Linear(width, 4 * width)
        self.fc2 = Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class BERTEncoder(nn.Module):
    """Token ids (B, N) to hidden states (B, N, width)."""

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.position_embedding = nn.Embedding(config.context_length, config.width)
        self.blocks = nn.ModuleList(Block(config.width) for _ in range(config.layers))
        self.final_norm = nn.LayerNorm(config.width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Hidden states after the final norm.

        tokens: LongTensor (B, N), N at most `context_length`. Returns (B, N, width). Raises ValueError for
        another shape.
        """
        if tokens.ndim != 2 or tokens.shape[1] > self.config.context_length:
            raise ValueError(
                f"expected tokens of (B, N), N <= {self.config.context_length}, got {tuple(tokens.shape)}"
            )
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.token_embedding(tokens) + self.position_embedding(positions)
        for block in self.blocks:
            x = block(x)
        return self.final_norm(x)
