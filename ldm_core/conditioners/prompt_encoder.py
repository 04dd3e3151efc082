"""Prompts with weights as contexts: chunks of tokens, each encoded on its own.

CLIP reads 75 tokens between its start and end tokens. A longer prompt becomes several chunks, and its context
the chunks' hidden states one after the other, (B, 77 k, width).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldm_core.conditioners.text import TextConditioner

NEEDED = ("encode", "context_length", "bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class Chunk:
    """At most 75 token ids, without start and end tokens, and a weight for each."""

    ids: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()


@dataclass(frozen=True)
class PromptPhase:
    """The contexts of the steps up to `last`, counted from 1.

    alternatives: pairs of a context (B, N, width) and its weights (B,). unconditional: (B, N, width).
    """

    last: int
    alternatives: tuple[tuple[Tensor, Tensor], ...]
    unconditional: Tensor


class PromptEncoder:
    """Encodes chunks with a conditioner of prompts, each distinct chunk once.

    Raises ValueError for a tokenizer that lacks one of `NEEDED`, such as BERT's.
    """

    def __init__(self, conditioner: TextConditioner) -> None:
        self.conditioner = conditioner
        tokenizer: Any = conditioner.tokenizer
        self.tokenizer = tokenizer
        missing = [name for name in NEEDED if not hasattr(self.tokenizer, name)]
        if missing:
            raise ValueError(
                f"prompt syntax needs a tokenizer like CLIP's, but {type(self.tokenizer).__name__} has no "
                f"{', '.join(missing)}"
            )
        self.length: int = self.tokenizer.context_length - 2
        self._encoded: dict[tuple[int, ...], Tensor] = {}

    def ids(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer.encode(text)
        return found

    def hidden(self, chunks: Sequence[Chunk]) -> Tensor:
        """The text encoder's output for the chunks: (len(chunks), 77, width)."""
        rows = [self._row(chunk) for chunk in chunks]
        new = [row for row in dict.fromkeys(rows) if row not in self._encoded]
        if new:
            self._encoded |= dict(zip(new, self.conditioner.encode(torch.tensor(new)), strict=True))
        return torch.stack([self._encoded[row] for row in rows])

    def masked(self, chunks: Sequence[Chunk], masks: Sequence[Sequence[bool]]) -> Tensor:
        """The output (len(chunks), 77, width) where no token attends to those that are True in its mask."""
        after = [self.length + 1 - len(chunk.ids) for chunk in chunks]
        rows = [[False, *mask, *[False] * count] for mask, count in zip(masks, after, strict=True)]
        return self.conditioner.encode(torch.tensor([self._row(c) for c in chunks]), torch.tensor(rows))

    def weights(self, chunks: Sequence[Chunk], like: Tensor) -> Tensor:
        """The weights of all positions, (len(chunks), 77, 1); 1 at start, end and padding."""
        rows = []
        for chunk in chunks:
            after = self.length + 1 - len(chunk.weights)
            rows.append([1.0, *chunk.weights, *[1.0] * after])
        return torch.tensor(rows, dtype=like.dtype, device=like.device)[..., None]

    def _row(self, chunk: Chunk) -> tuple[int, ...]:
        row = [self.tokenizer.bos_token_id, *chunk.ids, self.tokenizer.eos_token_id]
        return (*row, *[self.tokenizer.pad_token_id] * (self.length + 2 - len(row)))
