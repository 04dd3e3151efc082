"""The configuration of unCLIP's prior (Ramesh et al. 2022, arXiv:2204.06125, section 2.2)."""

from __future__ import annotations

from dataclasses import dataclass

from ldm_core.support.limits import MAX_DEPTH, MAX_SIZE, require, require_bool, require_heads, require_whole

EXTRA_TOKENS = 4  # the text's embedding, the timestep, the noisy picture's embedding, and the output


@dataclass(frozen=True)
class PriorConfig:
    """The sizes of a `PriorTransformer`. The defaults are Karlo's, for CLIP ViT-L/14.

    width, layers, heads: of the transformer.
    embedding_dim: D, of CLIP's embeddings. text_width: of the text encoder's hidden states.
    context_length: number of the text's tokens.
    statistics: whether the weights contain mean and std of the embeddings of pictures.
    """

    width: int = 2048
    layers: int = 20
    heads: int = 32
    embedding_dim: int = 768
    text_width: int = 768
    context_length: int = 77
    statistics: bool = True

    def __post_init__(self) -> None:
        part = "prior"
        require_whole(part, self, "width embedding_dim text_width context_length heads", 1, MAX_SIZE)
        require_whole(part, self, "layers", 1, MAX_DEPTH)
        require_heads(part, self.width, self.heads)
        require(self.width % 2 == 0, f"prior: width must be even, not {self.width}")
        require_bool(part, self, "statistics")


KARLO = PriorConfig()
