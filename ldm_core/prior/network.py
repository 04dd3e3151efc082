"""The prior's transformer: it predicts a picture's CLIP embedding from a noisy one and a text.

    tokens = [hidden states of the text, e_text, emb(t), z_t, output] + positions
    z_0    = project(transformer(tokens)[output])

(Ramesh et al. 2022, arXiv:2204.06125, section 2.2.) Each entry is projected to the transformer's width.
Attention is causal, and no token sees the text's padding. The network predicts z_0 itself, not the noise; z
is a normalised embedding, (e - mean) / std. Counterparts: the prior of Kakao Brain's Karlo, and diffusers'
`PriorTransformer`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_core.clip.block import ResidualAttentionBlock
from ldm_core.nn.blocks import timestep_embedding
from ldm_core.nn.linear import Linear
from ldm_core.prior.config import EXTRA_TOKENS, PriorConfig


class PriorTransformer(nn.Module):
    """Noisy embeddings (B, D), timesteps and texts to predicted embeddings (B, D), all of them normalised.

    mean, std: of pictures' embeddings, (1, D); None for weights without statistics.
    """

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config = config
        width, dim = config.width, config.embedding_dim
        self.hidden_proj = Linear(config.text_width, width)
        self.text_proj = Linear(dim, width)
        self.time_fc1 = Linear(width, width)
        self.time_fc2 = Linear(width, width)
        self.image_proj = Linear(dim, width)
        self.output_token = nn.Parameter(0.01 * torch.randn(1, 1, width))
        tokens = config.context_length + EXTRA_TOKENS
        self.positions = nn.Parameter(0.01 * torch.randn(1, tokens, width))
        self.blocks = nn.ModuleList(
            ResidualAttentionBlock(width, config.heads, "gelu", causal=True) for _ in range(config.layers)
        )
        self.final_norm = nn.LayerNorm(width)
        self.out = Linear(width, dim)
        self.mean: nn.Parameter | None = None
        self.std: nn.Parameter | None = None
        if config.statistics:
            self.mean = nn.Parameter(torch.zeros(1, dim), requires_grad=False)
            self.std = nn.Parameter(torch.ones(1, dim), requires_grad=False)

    def forward(
        self, x: Tensor, t: Tensor | float, text: Tensor, hidden: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """x, text: (B, D). t: a number or (B,). hidden: (B, N, text_width), N the context length.

        mask: bool (B, N), False for padding; None: there is none. Returns the predicted z_0, (B, D).
        Raises ValueError for other shapes.
        """
        self._check(x, text, hidden, mask)
        t = torch.as_tensor(t, device=x.device).expand(len(x))
        emb = timestep_embedding(t, self.config.width).to(x.dtype)
        emb = self.time_fc2(F.silu(self.time_fc1(emb)))
        rows = [self.text_proj(text), emb, self.image_proj(x)]  # each (B, width)
        extra = torch.cat([torch.stack(rows, dim=1), self.output_token.expand(len(x), -1, -1)], dim=1)
        tokens = torch.cat([self.hidden_proj(hidden), extra], dim=1) + self.positions
        tokens, last = _without_padding(tokens, mask)
        for block in self.blocks:
            tokens = block(tokens)
        return self.out(self.final_norm(tokens[torch.arange(len(x), device=x.device), last]))

    def normalised(self, embeddings: Tensor) -> Tensor:
        """z of CLIP's embeddings e of pictures, both (B, D)."""
        return embeddings if self.mean is None or self.std is None else (embeddings - self.mean) / self.std

    def embeddings(self, z: Tensor) -> Tensor:
        """The inverse of `normalised`."""
        return z if self.mean is None or self.std is None else z * self.std + self.mean

    def _check(self, x: Tensor, text: Tensor, hidden: Tensor, mask: Tensor | None) -> None:
        config, rows = self.config, len(x)
        wanted = {
            "x": (x, (rows, config.embedding_dim)),
            "text": (text, (rows, config.embedding_dim)),
            "hidden": (hidden, (rows, config.context_length, config.text_width)),
        }
        if mask is not None:
            wanted["mask"] = (mask, (rows, config.context_length))
        for name, (tensor, shape) in wanted.items():
            if tensor.shape != shape:
                raise ValueError(f"prior: expected {name} of {shape}, got {tuple(tensor.shape)}")


def _without_padding(tokens: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | int]:
    """Tokens (B, M, width), those of the padding last or cut, and the index of each row's output token.

    Under causal attention no token sees what follows it, so this equals a mask of the padding, with any
    attention backend. A token keeps its position's embedding, which was added before.
    """
    if mask is None:
        return tokens, tokens.shape[1] - 1
    kept = F.pad(mask.bool(), (0, EXTRA_TOKENS), value=True)
    order = (~kept).int().argsort(dim=1, stable=True)  # the kept ones first, in their order
    lengths = kept.sum(dim=1)
    order = order[:, : int(lengths.max())]
    return tokens.gather(1, order[:, :, None].expand(-1, -1, tokens.shape[2])), lengths - 1
