"""The style adapter, and the fuser of several T2I-Adapters ("CoAdapter").

Both are small transformers of CLIP's blocks (Mou et al. 2023, arXiv:2302.08453, and the authors'
`StyleAdapter` and `CoAdapterFuser`). A style is a sequence of tokens for the U-Net's context:

    style = norm(blocks(norm([CLIP's patches; s_1 … s_8]))_(s_1 … s_8)) P

The fuser sees one sequence of tokens, four (the mean of each level) of each condition, or the tokens of a
style, and scales each of their features by 1 + what it computes for its token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_core.clip.block import ResidualAttentionBlock
from ldm_core.support.limits import (
    MAX_DEPTH,
    MAX_SIZE,
    make_tuples,
    require_heads,
    require_sizes,
    require_whole,
)

KINDS = ("sketch", "keypose", "seg", "depth", "canny", "style", "color", "openpose")
TASKS = 16  # rows of the table of conditions, of which KINDS are known


@dataclass(frozen=True)
class StyleAdapterConfig:
    """width: of CLIP's patches. context_dim: of the U-Net's context. tokens: of a style."""

    width: int = 1024
    context_dim: int = 768
    tokens: int = 8
    layers: int = 3
    heads: int = 8

    def __post_init__(self) -> None:
        require_whole("style_adapter", self, "width context_dim tokens heads", 1, MAX_SIZE)
        require_whole("style_adapter", self, "layers", 1, MAX_DEPTH)
        require_heads("style_adapter", self.width, self.heads)


class StyleAdapter(nn.Module):
    """CLIP's last hidden states (B, 1 + patches, width) to style tokens (B, tokens, context_dim)."""

    def __init__(self, config: StyleAdapterConfig) -> None:
        super().__init__()
        self.config = config
        self.style = nn.Parameter(torch.randn(1, config.tokens, config.width) / config.width**0.5)
        self.pre_norm = nn.LayerNorm(config.width)
        self.blocks = _blocks(config.width, config.heads, config.layers)
        self.post_norm = nn.LayerNorm(config.width)
        self.projection = nn.Parameter(torch.randn(config.width, config.context_dim) / config.width**0.5)

    def forward(self, patches: Tensor) -> Tensor:
        """CLIP's hidden states (B, N, width) -> tokens (B, tokens, context_dim)."""
        if patches.ndim != 3 or patches.shape[2] != self.config.width:
            raise ValueError(
                f"style_adapter: expected CLIP's hidden states (B, N, {self.config.width}), got "
                f"{tuple(patches.shape)}"
            )
        x = self.pre_norm(torch.cat([patches, self.style.expand(len(patches), -1, -1)], dim=1))
        for block in self.blocks:
            x = block(x)
        return self.post_norm(x[:, -self.config.tokens :]) @ self.projection


@dataclass(frozen=True)
class FuserConfig:
    """channels: of each level's features. width: of the tokens, and of a style's."""

    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    width: int = 768
    layers: int = 3
    heads: int = 8

    def __post_init__(self) -> None:
        make_tuples(self)
        require_whole("coadapter_fuser", self, "width heads", 1, MAX_SIZE)
        require_whole("coadapter_fuser", self, "layers", 1, MAX_DEPTH)
        require_sizes("coadapter_fuser", self, "channels", low=1)
        require_heads("coadapter_fuser", self.width, self.heads)


class CoAdapterFuser(nn.Module):
    """The features and the style of several conditions to one set of features and one style."""

    def __init__(self, config: FuserConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.task_embedding = nn.Parameter(torch.randn(TASKS, width) / width**0.5)
        self.positional_embedding = nn.Parameter(torch.randn(len(config.channels), width) / width**0.5)
        self.inputs = nn.ModuleList(nn.Linear(channels, width) for channels in config.channels)
        self.pre_norm = nn.LayerNorm(width)
        self.blocks = _blocks(width, config.heads, config.layers)
        self.post_norm = nn.LayerNorm(width)
        self.outputs = nn.ModuleList(_zero_linear(width, channels) for channels in config.channels)
        self.style_projection = nn.Parameter(torch.zeros(width, width))

    def forward(
        self, conditions: Mapping[str, tuple[Tensor, ...] | Tensor]
    ) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """(the features of each level, the style tokens or None).

        conditions: by a name of KINDS, the features of a T2I-Adapter, or style tokens (B, N, width).
        Raises ValueError for other names and shapes.
        """
        tokens = [self._tokens(kind, values) for kind, values in conditions.items()]
        if not tokens:
            raise ValueError("coadapter_fuser: expected at least one condition")
        x = self.pre_norm(torch.cat(tokens, dim=1))
        for block in self.blocks:
            x = block(x)
        sequences = self.post_norm(x).split([token.shape[1] for token in tokens], dim=1)
        features: tuple[Tensor, ...] = ()
        style = None
        for values, sequence in zip(conditions.values(), sequences):
            if isinstance(values, Tensor):
                scaled = values * (1 + sequence @ self.style_projection)
                style = scaled if style is None else torch.cat([style, scaled], dim=1)
                continue
            factors = [output(sequence[:, level]) for level, output in enumerate(self.outputs)]
            ours = tuple(value * (1 + f[:, :, None, None]) for value, f in zip(values, factors))
            features = tuple(a + b for a, b in zip(features, ours)) if features else ours
        return features, style

    def _tokens(self, kind: str, values: tuple[Tensor, ...] | Tensor) -> Tensor:
        """The tokens of one condition: (B, levels, width), or those of a style."""
        if kind not in KINDS:
            raise ValueError(f"coadapter_fuser: expected kinds of {', '.join(KINDS)}, not {kind!r:.40}")
        task = self.task_embedding[KINDS.index(kind)]
        if isinstance(values, Tensor):
            if values.ndim != 3 or values.shape[2] != self.config.width:
                raise ValueError(
                    f"coadapter_fuser: expected style tokens (B, N, {self.config.width}), got "
                    f"{tuple(values.shape)}"
                )
            return values + task
        found = tuple(value.shape[1] for value in values)
        if found != self.config.channels:
            raise ValueError(
                f"coadapter_fuser: expected features of {self.config.channels} channels, got {found}"
            )
        means = [layer(F.silu(value.mean(dim=(2, 3)))) for layer, value in zip(self.inputs, values)]
        return torch.stack(means, dim=1) + task + self.positional_embedding


def _zero_linear(width: int, channels: int) -> nn.Linear:
    """A layer of zeros: a new fuser adds the features as they are."""
    linear = nn.Linear(width, channels)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def _blocks(width: int, heads: int, layers: int) -> nn.ModuleList:
    return nn.ModuleList(
        ResidualAttentionBlock(width, heads, "quick_gelu", causal=False) for _ in range(layers)
    )
