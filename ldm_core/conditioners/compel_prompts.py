"""Prompts in Compel's syntax as contexts.

A token of weight w has z_empty + w (z - z_empty), where z_empty is the empty prompt's hidden state at its
position. For each piece of weight below 1, a context without that piece is mixed in, with weight
tan((1 - w) pi / 2) against 1 for the whole prompt: w = 0.5 is half way, and at 0 the piece is gone. In that
context no token attends to the piece's tokens (Compel's downweight mode "MASK"), or the prompt lacks them
("REMOVE").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ldm_core import prompts as grammar
from ldm_core.conditioners.prompt_encoder import Chunk, PromptEncoder, PromptPhase
from ldm_core.prompts.compel import CompelPrompt, Pieces

SMALLEST = 1e-5  # the smallest weight in the tangent
Lowered = Literal["mask", "remove"]
MAX_LOWERED = 100  # pieces of weight below 1, since the prompt is encoded once more for each


@dataclass(frozen=True)
class Compel:
    """Weights, blends and conjunctions; the same in all steps. Longer prompts continue in further chunks.

    lowered: how pieces of weight below 1 lose their effect: "mask" or "remove".
    """

    lowered: Lowered = "mask"

    def is_plain(self, encoder: PromptEncoder, prompt: str) -> bool:
        """Whether the prompt has no syntax and fits one chunk."""
        found = grammar.compel(prompt)
        if len(found.prompts) > 1 or any(weight != 1 for _, weight in found.prompts[0]):
            return False
        ids = encoder.ids(prompt)
        return len(ids) <= encoder.length and ids == [
            token for text, _ in found.prompts[0] for token in encoder.ids(text)
        ]

    def phases(
        self, encoder: PromptEncoder, prompts: Sequence[str], negatives: Sequence[str], steps: int
    ) -> list[PromptPhase]:
        """One phase, with contexts as long as the longest."""
        found = [combined(encoder, grammar.compel(prompt), self.lowered) for prompt in (*prompts, *negatives)]
        contexts = torch.stack(_same_length(encoder, found))
        count = len(prompts)
        return [PromptPhase(steps, ((contexts[:count], torch.ones(count)),), contexts[count:])]


def combined(encoder: PromptEncoder, prompt: CompelPrompt, lowered: Lowered = "mask") -> Tensor:
    """The context (77 k, width) of a prompt, with its blend or conjunction."""
    contexts = [weighted(encoder, pieces, lowered) for pieces in prompt.prompts]
    if prompt.operator == "and":
        empty = encoder.hidden([Chunk()])[0]
        return torch.cat(
            [_moved(context, empty, weight) for context, weight in zip(contexts, prompt.weights, strict=True)]
        )
    return _mean(_same_length(encoder, contexts), prompt.weights, prompt.normalize)


def weighted(encoder: PromptEncoder, pieces: Pieces, lowered: Lowered = "mask") -> Tensor:
    """The context (77 k, width) of pieces with weights."""
    count = sum(weight < 1 for _, weight in pieces)
    if count > MAX_LOWERED:
        raise ValueError(f"a prompt may have at most {MAX_LOWERED} pieces of weight below 1, not {count:,}")
    contexts, weights = [_moved_tokens(encoder, pieces)], [1.0]
    for i, (_, weight) in enumerate(pieces):
        if weight < 1:
            without = (*pieces[:i], *pieces[i + 1 :])
            contexts.append(
                _moved_tokens(encoder, pieces, i) if lowered == "mask" else _moved_tokens(encoder, without)
            )
            weights.append(math.tan((1 - max(weight, SMALLEST)) * math.pi / 2))
    if len(contexts) == 1:
        return contexts[0]
    return _mean(_same_length(encoder, contexts), weights, normalize=True)


def _moved_tokens(encoder: PromptEncoder, pieces: Pieces, masked: int | None = None) -> Tensor:
    """The context in which each token has moved by its weight. masked: a piece that no token attends to."""
    tokens = [
        (token, weight, i == masked) for i, (text, weight) in enumerate(pieces) for token in encoder.ids(text)
    ]
    starts = range(0, max(len(tokens), 1), encoder.length)
    parts = [tokens[start : start + encoder.length] for start in starts]
    chunks = [
        Chunk(tuple(token for token, *_ in part), tuple(weight for _, weight, _ in part)) for part in parts
    ]
    masks = [[hidden for *_, hidden in part] for part in parts]
    plain = encoder.hidden(chunks) if masked is None else encoder.masked(chunks, masks)
    weights = encoder.weights(chunks, plain)
    empty = encoder.hidden([Chunk()])
    return torch.where(weights == 1, plain, empty + weights * (plain - empty)).flatten(0, 1)


def _moved(context: Tensor, empty: Tensor, weight: float) -> Tensor:
    if weight == 1:
        return context
    empty = empty.repeat(len(context) // len(empty), 1)
    return empty + weight * (context - empty)


def _mean(contexts: list[Tensor], weights: Sequence[float], normalize: bool) -> Tensor:
    total = sum(weights) if normalize else 1.0
    pairs = zip(contexts, weights, strict=True)
    return torch.stack([context * (weight / total) for context, weight in pairs]).sum(dim=0)


def _same_length(encoder: PromptEncoder, contexts: list[Tensor]) -> list[Tensor]:
    """The contexts continued by the empty prompt's to the length of the longest."""
    longest = max(len(context) for context in contexts)
    empty = encoder.hidden([Chunk()])[0]
    return [
        torch.cat([context, empty.repeat((longest - len(context)) // len(empty), 1)]) for context in contexts
    ]
