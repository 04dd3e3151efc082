"""CLIP's image encoder: a vision transformer (Dosovitskiy et al. 2020, arXiv:2010.11929, equations 1 to 4;
Radford et al. 2021, arXiv:2103.00020, section 2.4).

    z_0 = norm([class; E p_1; ...; E p_N] + positions)     E p_i: patch i of the image, projected
    z_l = block(z_(l-1))                                   attention among all patches
    I   = norm(z_L at the class token) W

In contrast to Dosovitskiy et al., there is a norm before the first block, and the projection E has no bias.
Counterparts: `VisionTransformer` of OpenAI's `clip/model.py` and of open_clip,
`CLIPVisionModelWithProjection` of transformers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldm_core.clip.block import ResidualAttentionBlock
from ldm_core.clip.config import ImageEncoderConfig


class CLIPImageEncoder(nn.Module):
    """Normalised pixels (B, 3, S, S) from `preprocess` to embeddings (B, projection_dim).

    S is the image_size of the configuration. The embeddings are not normalised.
    """

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        self.config = config
        width, patch = config.width, config.patch_size
        self.patch_embedding = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.position_embedding = nn.Parameter(torch.empty(1 + config.patches, width))
        self.pre_norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(
            ResidualAttentionBlock(width, config.heads, config.activation, causal=False)
            for _ in range(config.layers)
        )
        self.final_norm = nn.LayerNorm(width)
        self.projection = nn.Parameter(torch.empty(width, config.projection_dim))
        for parameter in (self.class_embedding, self.position_embedding, self.projection):
            nn.init.normal_(parameter, std=width**-0.5)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, projection_dim). Raises ValueError for another shape."""
        return self.final_norm(self.hidden_states(pixels)[:, 0]) @ self.projection

    def hidden_states(self, pixels: Tensor, skip: int = 0) -> Tensor:
        """(B, 3, S, S) -> (B, 1 + N, width): the class token and the patches, before the final norm.

        skip: the number of final blocks to skip, 0..layers. Raises ValueError for other numbers and shapes.
        """
        size = self.config.image_size
        if pixels.ndim != 4 or pixels.shape[1:] != (3, size, size):
            raise ValueError(f"expected pixels of (B, 3, {size}, {size}), got {tuple(pixels.shape)}")
        if not 0 <= skip <= len(self.blocks):
            raise ValueError(f"skip must be in 0..{len(self.blocks)}, not {skip}")
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)  # (B, width, h, w) -> (B, N, width)
        first = self.class_embedding.expand(len(pixels), 1, -1)
        x = self.pre_norm(torch.cat([first, patches], dim=1) + self.position_embedding)  # (B, 1 + N, width)
        for block in self.blocks[: len(self.blocks) - skip]:
            x = block(x)
        return x
