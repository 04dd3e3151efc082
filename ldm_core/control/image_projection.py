"""IP-Adapter's networks: image embeddings to tokens, and the keys and values of each cross-attention.

Ye et al. 2023, "IP-Adapter: Text Compatible Image Prompt Adapter for Text-to-Image Diffusion Models"
(arXiv:2308.06721). The published kinds differ in how they project CLIP's output:

    base   4 tokens from the projected embedding: one linear layer and a norm
    plus   16 tokens from the hidden states before the last block: a resampler, in which learned queries
           attend to the patches (as in Flamingo, arXiv:2204.14198)
    full   one token for each of these hidden states: two linear layers and a norm ("full face")
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_core.attention import attention
from ldm_core.support.limits import MAX_DEPTH, MAX_SIZE, make_tuples, require, require_heads, require_whole

HEAD = 64  # channels of a head of the resampler


@dataclass(frozen=True)
class IPAdapterConfig:
    """embedding_dim: of CLIP's output. context_dim: of the U-Net's context. tokens: for one image ("full": as
    many as hidden states). depth, width: of the resampler. channels: of each cross-attention, in the order of
    the way down, the way up, the middle.
    """

    kind: Literal["base", "plus", "full"] = "base"
    embedding_dim: int = 1024
    context_dim: int = 768
    tokens: int = 4
    depth: int = 4
    width: int = 768
    channels: tuple[int, ...] = (
        (320, 320, 640, 640, 1280, 1280) + 3 * (1280,) + 3 * (640,) + 3 * (320,) + (1280,)
    )

    def __post_init__(self) -> None:
        part = "ip_adapter"
        make_tuples(self)
        require(self.kind in ("base", "plus", "full"), f"{part}: unknown kind {self.kind!r}")
        require_whole(part, self, "embedding_dim context_dim tokens width", 1, MAX_SIZE)
        require_whole(part, self, "depth", 1, MAX_DEPTH)
        require(0 < len(self.channels) <= MAX_DEPTH, f"{part}: expected 1 to {MAX_DEPTH} attention layers")
        if self.kind == "plus":
            require_heads(part, self.width, HEAD)


class LinearProjection(nn.Module):
    """(B, embedding_dim) -> (B, tokens, context_dim)."""

    def __init__(self, config: IPAdapterConfig) -> None:
        super().__init__()
        self.tokens = config.tokens
        self.linear = nn.Linear(config.embedding_dim, config.tokens * config.context_dim)
        self.norm = nn.LayerNorm(config.context_dim)

    def forward(self, embeddings: Tensor) -> Tensor:
        """(B, embedding_dim) -> (B, tokens, context_dim)."""
        return self.norm(self.linear(embeddings).unflatten(1, (self.tokens, -1)))


class FullProjection(nn.Module):
    """(B, N, embedding_dim) -> (B, N, context_dim)."""

    def __init__(self, config: IPAdapterConfig) -> None:
        super().__init__()
        self.linear1 = nn.Linear(config.embedding_dim, config.embedding_dim)
        self.linear2 = nn.Linear(config.embedding_dim, config.context_dim)
        self.norm = nn.LayerNorm(config.context_dim)

    def forward(self, patches: Tensor) -> Tensor:
        """(B, N, embedding_dim) -> (B, N, context_dim)."""
        return self.norm(self.linear2(F.gelu(self.linear1(patches))))


class ResamplerLayer(nn.Module):
    """Queries attend to the patches and to themselves; then an MLP. Both with norms before and residuals."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // HEAD
        self.norm_patches = nn.LayerNorm(width)
        self.norm_queries = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_kv = nn.Linear(width, 2 * width, bias=False)
        self.to_out = nn.Linear(width, width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width, bias=False)
        self.fc2 = nn.Linear(4 * width, width, bias=False)

    def forward(self, queries: Tensor, patches: Tensor) -> Tensor:
        """Queries (B, tokens, width) and patches (B, N, width) -> queries."""
        normed = self.norm_queries(queries)
        k, v = self.to_kv(torch.cat([self.norm_patches(patches), normed], dim=1)).chunk(2, dim=-1)
        q, k, v = (x.unflatten(-1, (self.heads, HEAD)).transpose(1, 2) for x in (self.to_q(normed), k, v))
        queries = queries + self.to_out(attention(q, k, v).transpose(1, 2).flatten(2))
        return queries + self.fc2(F.gelu(self.fc1(self.norm(queries))))


class Resampler(nn.Module):
    """(B, N, embedding_dim) -> (B, tokens, context_dim)."""

    def __init__(self, config: IPAdapterConfig) -> None:
        super().__init__()
        width = config.width
        self.queries = nn.Parameter(torch.randn(1, config.tokens, width) / width**0.5)
        self.proj_in = nn.Linear(config.embedding_dim, width)
        self.layers = nn.ModuleList(ResamplerLayer(width) for _ in range(config.depth))
        self.proj_out = nn.Linear(width, config.context_dim)
        self.norm_out = nn.LayerNorm(config.context_dim)

    def forward(self, patches: Tensor) -> Tensor:
        """(B, N, embedding_dim) -> (B, tokens, context_dim)."""
        x, queries = self.proj_in(patches), self.queries.expand(len(patches), -1, -1)
        for layer in self.layers:
            queries = layer(queries, x)
        return self.norm_out(self.proj_out(queries))


_PROJECTIONS = {"base": LinearProjection, "plus": Resampler, "full": FullProjection}


class IPAdapter(nn.Module):
    """The projection of image embeddings, and the keys and values that each layer makes of the tokens."""

    def __init__(self, config: IPAdapterConfig) -> None:
        super().__init__()
        self.config = config
        self.projection = _PROJECTIONS[config.kind](config)
        widths = config.channels
        self.to_k = nn.ModuleList(nn.Linear(config.context_dim, width, bias=False) for width in widths)
        self.to_v = nn.ModuleList(nn.Linear(config.context_dim, width, bias=False) for width in widths)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Tokens (B, N, context_dim). Raises ValueError for embeddings of another shape.

        embeddings: (B, embedding_dim) of "base"; (B, N, embedding_dim) of the others.
        """
        dims, width = 2 if self.config.kind == "base" else 3, self.config.embedding_dim
        if embeddings.ndim != dims or embeddings.shape[-1] != width:
            wanted = f"(B, {width})" if dims == 2 else f"(B, N, {width})"
            raise ValueError(
                f"ip_adapter: expected image embeddings of {wanted}, got {tuple(embeddings.shape)}"
            )
        tokens: Tensor = self.projection(embeddings)
        return tokens
