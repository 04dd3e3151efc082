"""The configuration of BERT as a text encoder of latent diffusion (arXiv:2112.10752, section E.2.1)."""

from __future__ import annotations

from dataclasses import dataclass

from ldm_core.support.limits import MAX_DEPTH, MAX_ROWS, MAX_SIZE, require_whole

# Of all published models, whatever their width; CompVis's configurations cannot change them.
HEADS = 8
HEAD_SIZE = 64


@dataclass(frozen=True)
class BERTConfig:
    """The sizes of a `BERTEncoder`, all of which its tensors' shapes prove.

    The defaults are those of prompts.
    """

    width: int
    layers: int
    vocab_size: int = 30522
    context_length: int = 77

    def __post_init__(self) -> None:
        part = "BERT"
        require_whole(part, self, "width context_length", 1, MAX_SIZE)
        require_whole(part, self, "layers", 1, MAX_DEPTH)
        require_whole(part, self, "vocab_size", 1, MAX_ROWS)


@dataclass(frozen=True)
class LayoutConfig(BERTConfig):
    """A `BERTEncoder` of the tokens of layouts: labelled boxes (`ldm_core.conditioners.Layout`)."""

    vocab_size: int = 8192
    context_length: int = 92

    @property
    def context_dim(self) -> int:
        return self.width
