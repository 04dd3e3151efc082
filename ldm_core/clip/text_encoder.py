"""CLIP's text transformer: token ids to one vector a token (Radford et al. 2021, arXiv:2103.00020).

A GPT-2-like stack with causal attention and the norm before each sublayer. SD1 takes the last layer's
output, SD2 the one before; both after the final norm. Counterparts: `FrozenCLIPEmbedder` (which wraps
transformers' `CLIPTextModel`) and `FrozenOpenCLIPEmbedder` of CompVis and Stability AI.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ldm_core.clip.block import ResidualAttentionBlock
from ldm_core.clip.config import TextEncoderConfig


class CLIPTextEncoder(nn.Module):
    """Token ids (B, N) to hidden states (B, N, width)."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.position_embedding = nn.Embedding(config.context_length, config.width)
        self.blocks = nn.ModuleList(
            ResidualAttentionBlock(config.width, config.heads, config.activation, causal=True)
            for _ in range(config.layers)
        )
        self.final_norm = nn.LayerNorm(config.width)
        self.text_projection: nn.Parameter | None = None
        self.logit_scale: nn.Parameter | None = None
        if config.projection_dim is not None:
            # What `embed` and CLIP's loss use. They condition no U-Net, but open_clip's files hold them, so a
            # saved model has them too.
            self.text_projection = nn.Parameter(torch.empty(config.width, config.projection_dim))
            nn.init.normal_(self.text_projection, std=config.width**-0.5)
            self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

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

    def embed(self, tokens: Tensor) -> Tensor:
        """A vector for each text in the space that CLIP's texts and images share, not normalised.

        The last block's output after the final norm, at the end of the text, through `text_projection`
        (section 2.4). Causal attention lets that position alone see the whole text. As in OpenAI's code the
        end is the first place of the largest id, so words that were added beyond the vocabulary have no
        place in such a text. tokens: (B, N). Returns (B, projection_dim). Raises ValueError for an encoder
        without a projection.
        """
        if self.text_projection is None:
            raise ValueError("this text encoder has no projection to CLIP's joint space (projection_dim)")
        hidden = self(tokens, clip_skip=0)  # (B, N, width)
        ends = hidden[torch.arange(len(tokens), device=tokens.device), tokens.argmax(dim=1)]  # (B, width)
        return ends @ self.text_projection
