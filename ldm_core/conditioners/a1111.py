"""Prompts in the syntax of A1111's web UI as contexts, for each phase of a run."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm_core import prompts as grammar
from ldm_core.conditioners.prompt_encoder import Chunk, PromptEncoder, PromptPhase

COMMA_BACKTRACK = 20  # tokens from the end of a chunk in which its last comma may lie

Schedule = list[tuple[int, str]]


@dataclass(frozen=True)
class A1111:
    """Weights, BREAK, chunks, changes during the run, and AND.

    keep_mean: multiply weighted contexts by one number, so that their mean is that of the plain ones. It is
    the mean over all contexts of one prompt's schedule, for each chunk.
    """

    keep_mean: bool = True

    def is_plain(self, encoder: PromptEncoder, prompt: str) -> bool:
        """Whether the prompt has no syntax and fits one chunk."""
        return (
            grammar.alternatives(prompt) == [(prompt.rstrip(), 1.0)]
            and grammar.schedule(prompt, 1) == [(1, prompt)]
            and grammar.weights(prompt) == [(prompt, 1.0)]
            and len(encoder.ids(prompt)) <= encoder.length
        )

    def phases(
        self, encoder: PromptEncoder, prompts: Sequence[str], negatives: Sequence[str], steps: int
    ) -> list[PromptPhase]:
        """The phases of a run of prompts and as many negative prompts.

        All contexts have as many chunks as the longest; empty chunks are added to the others. A prompt with
        fewer alternatives than another has its first one again, with weight 0.
        """
        parsed = [grammar.alternatives(prompt) for prompt in prompts]
        count = max(len(alternatives) for alternatives in parsed)
        filled = [[*found, *[(found[0][0], 0.0)] * (count - len(found))] for found in parsed]
        # The schedules of alternative i of every prompt, and at last those of the negative prompts.
        columns = [[grammar.schedule(row[i][0], steps) for row in filled] for i in range(count)]
        columns.append([grammar.schedule(negative, steps) for negative in negatives])
        everything = {text for column in columns for schedule in column for _, text in schedule}
        chunks = {text: chunks_of(encoder, text) for text in everything}
        most = max(len(found) for found in chunks.values())
        padded = {text: [*found, *[Chunk()] * (most - len(found))] for text, found in chunks.items()}
        weights = [torch.tensor([row[i][1] for row in filled]) for i in range(count)]
        tracks = [
            _Track([self._contexts(encoder, one, padded) for one in column], column) for column in columns
        ]
        ends = sorted({end for column in columns for schedule in column for end, _ in schedule})
        phases = []
        for end in ends:
            *alternatives, unconditional = (track.at(end) for track in tracks)
            phases.append(PromptPhase(end, tuple(zip(alternatives, weights, strict=True)), unconditional))
        return phases

    def _contexts(
        self, encoder: PromptEncoder, schedule: Schedule, chunks: dict[str, list[Chunk]]
    ) -> dict[str, Tensor]:
        """The context (77 k, width) of each text of a schedule."""
        counts = Counter(text for _, text in schedule)
        parts = []
        for together in zip(*(chunks[text] for text in counts), strict=True):
            plain = encoder.hidden(together)  # (texts, 77, width)
            times = torch.tensor(list(counts.values())).to(plain) if self.keep_mean else None
            parts.append(emphasised(plain, encoder.weights(together, plain), times))
        return dict(zip(counts, torch.cat(parts, dim=1), strict=True))


class _Track:
    """The contexts of one alternative of all prompts, (B, 77 k, width), which change during the run."""

    def __init__(self, contexts: list[dict[str, Tensor]], schedules: list[Schedule]) -> None:
        self.contexts, self.schedules = contexts, schedules
        self.ends = [[end for end, _ in schedule] for schedule in schedules]
        self.made: dict[tuple[str, ...], Tensor] = {}  # texts that come back share one tensor

    def at(self, step: int) -> Tensor:
        pairs = zip(self.schedules, self.ends, strict=True)
        texts = tuple(schedule[bisect_left(ends, step)][1] for schedule, ends in pairs)
        if texts not in self.made:
            found = [contexts[text] for contexts, text in zip(self.contexts, texts, strict=True)]
            self.made[texts] = torch.stack(found)
        return self.made[texts]


def emphasised(plain: Tensor, weights: Tensor, counts: Tensor | None = None) -> Tensor:
    """Hidden states (B, N, width) times weights (B, N, 1).

    counts: (B,): restore the mean of all hidden states, in which each row counts so many times.
    """
    if bool((weights == 1).all()):
        return plain
    weighted = plain * weights
    if counts is None:
        return weighted
    before, after = ((x.mean(dim=(1, 2)) * counts).sum() for x in (plain, weighted))
    return weighted * (before / after)


def chunks_of(encoder: PromptEncoder, text: str) -> list[Chunk]:
    """A prompt as chunks, each piece of one weight being tokenized on its own. There is one, at least.

    If a full chunk has a comma among its last COMMA_BACKTRACK tokens, what follows the comma moves to the
    next chunk. An added word of several tokens is not cut.
    """
    comma = encoder.ids(",")
    words = {ids[0]: len(ids) for _, ids in getattr(encoder.tokenizer, "added_words", ())}
    chunks: list[Chunk] = []
    now: list[tuple[int, float]] = []
    last_comma = -1

    def close(end: int | None = None) -> None:
        nonlocal now, last_comma
        end = len(now) if end is None else end
        chunks.append(Chunk(tuple(i for i, _ in now[:end]), tuple(w for _, w in now[:end])))
        now, last_comma = now[end:], -1

    for piece, weight in grammar.weights(text):
        if (piece, weight) == grammar.BREAK:
            close()
            continue
        ids = encoder.ids(piece)
        position = 0
        while position < len(ids):
            token, size = ids[position], words.get(ids[position], 1)
            full = len(now) == encoder.length
            if [token] == comma:
                last_comma = len(now)
            elif full and last_comma != -1 and len(now) - last_comma <= COMMA_BACKTRACK:
                close(last_comma + 1)
            if len(now) + min(size, encoder.length) > encoder.length:
                close()
            now += [(one, weight) for one in ids[position : position + min(size, encoder.length)]]
            position += min(size, encoder.length)
    if now or not chunks:
        close()
    return chunks
