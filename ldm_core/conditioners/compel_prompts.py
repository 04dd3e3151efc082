"""Prompts in Compel's syntax as contexts.

A token of weight w has z_empty + w (z - z_empty), where z_empty is the empty prompt's hidden state at its
position. For each piece of weight below 1, the context of the prompt without that piece is mixed in, with
weight tan((1 - w) pi / 2) against 1 for the whole prompt: w = 0.5 is half way, and 0 removes the piece.
Compel calls this its downweight mode "REMOVE".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm_core import prompts as grammar
from ldm_core.conditioners.prompt_encoder import Chunk, PromptEncoder, PromptPhase
from ldm_core.prompts.compel import CompelPrompt, Pieces

SMALLEST = 1e-5  # the smallest weight in the tangent
MAX_LOWERED = 100  # pieces of weight below 1, since the prompt is encoded once without each


@dataclass(frozen=True)
class Compel:
    """Weights, blends and conjunctions; the same in all steps. Longer prompts continue in further chunks."""

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
        found = [combined(encoder, grammar.compel(prompt)) for prompt in (*prompts, *negatives)]
        contexts = torch.stack(_same_length(encoder, found))
        count = len(prompts)
        return [PromptPhase(steps, ((contexts[:count], torch.ones(count)),), contexts[count:])]


def combined(encoder: PromptEncoder, prompt: CompelPrompt) -> Tensor:
    """The context (77 k, width) of a prompt, with its blend or conjunction."""
    contexts = [weighted(encoder, pieces) for pieces in prompt.prompts]
    if prompt.operator == "and":
        empty = encoder.hidden([Chunk()])[0]
        return torch.cat(
            [_moved(context, empty, weight) for context, weight in zip(contexts, prompt.weights, strict=True)]
        )
    return _mean(_same_length(encoder, contexts), prompt.weights, prompt.normalize)


def weighted(encoder: PromptEncoder, pieces: Pieces) -> Tensor:
    """The context (77 k, width) of pieces with weights."""
    lowered = sum(weight < 1 for _, weight in pieces)
    if lowered > MAX_LOWERED:
        raise ValueError(f"a prompt may have at most {MAX_LOWERED} pieces of weight below 1, not {lowered:,}")
    contexts, weights = [_upweighted(encoder, pieces)], [1.0]
    for i, (_, weight) in enumerate(pieces):
        if weight < 1:
            contexts.append(_upweighted(encoder, (*pieces[:i], *pieces[i + 1 :])))
            weights.append(math.tan((1 - max(weight, SMALLEST)) * math.pi / 2))
    if len(contexts) == 1:
        return contexts[0]
    return _mean(_same_length(encoder, contexts), weights, normalize=True)


def _upweighted(encoder: PromptEncoder, pieces: Pieces) -> Tensor:
    tokens = [(token, weight) for text, weight in pieces for token in encoder.ids(text)]
    starts = range(0, max(len(tokens), 1), encoder.length)
    parts = [tokens[start : start + encoder.length] for start in starts]
    chunks = [Chunk(tuple(token for token, _ in part), tuple(weight for _, weight in part)) for part in parts]
    plain = encoder.hidden(chunks)
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
