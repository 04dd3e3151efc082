"""The MLP of transformer blocks, CompVis's `FeedForward` of `ldm.modules.attention`."""

from __future__ import annotations

from torch import Tensor, nn

from ldm_core.nn.blocks import GatedProjection, Geglu, gated_projection, geglu
from ldm_core.nn.linear import Linear
from ldm_core.nn.parts import in_parts


class FeedForward(nn.Module):
    """A gated MLP, GEGLU (Shazeer 2020, arXiv:2002.05202): (B, N, channels) -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.geglu: Geglu = geglu
        self.gated: GatedProjection = gated_projection
        self.proj_in = Linear(channels, 8 * channels)  # the value and its gate, 4 * channels each
        self.proj_out = Linear(4 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return in_parts(self._tokens, x, self.proj_in.out_features)

    def _tokens(self, x: Tensor) -> Tensor:
        return self.proj_out(self.gated(self.proj_in, self.geglu, x))
