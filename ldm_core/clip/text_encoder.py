"""CLIP's text transformer: token ids to one vector per token (Radford et al. 2021, arXiv:2103.00020).

A transformer like GPT-2, with causal attention and a norm before each sublayer. SD1 uses the output of the
last layer, SD2 that of the penultimate layer, both after the final norm. Counterparts: `FrozenCLIPEmbedder`
(which wraps transformers' `CLIPTextModel`) and `FrozenOpenCLIPEmbedder` of CompVis and Stability AI.
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
            # `embed` and CLIP's loss use these. No U-Net needs them, but open_clip's files contain them, so
            # saved models do too.
            self.text_projection = nn.Parameter(torch.empty(config.width, config.projection_dim))
            nn.init.normal_(self.text_projection, std=config.width**-0.5)
            self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, tokens: Tensor, clip_skip: int | None = None, hidden: Tensor | None = None) -> Tensor:
        """Hidden states after the final norm.

        tokens: LongTensor (B, N), N at most `context_length`. clip_skip: the number of final blocks to skip,
        by default the model's own (SD1: 0, SD2: 1). Web UIs count from 1: their "clip skip 2" is clip_skip=1
        here, as in diffusers. hidden: (B, N), True for tokens that no token attends to; the first is never
        hidden. Returns (B, N, width). Raises ValueError for other values and shapes.
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
            x = block(x, hidden)
        return self.final_norm(x)

    def embed(self, tokens: Tensor) -> Tensor:
        """One vector per text in CLIP's joint space of texts and images, not normalised.

        Projects the last block's output, after the final norm, at the end of the text (section 2.4). Because
        of causal attention, only this position depends on the whole text. As in OpenAI's code, the end is the
        first position of the largest id, so the text must not contain words added to the vocabulary.
        tokens: (B, N). Returns (B, projection_dim). Raises ValueError for an encoder without a projection.
        """
        if self.text_projection is None:
            raise ValueError(
                "expected a text encoder with a projection to CLIP's joint space; its projection_dim is None"
            )
        hidden = self(tokens, clip_skip=0)  # (B, N, width)
        ends = hidden[torch.arange(len(tokens), device=tokens.device), tokens.argmax(dim=1)]  # (B, width)
        return ends @ self.text_projection
