"""BERT's tokenizer: from a prompt to token ids.

    special     `[PAD]`, `[UNK]`, `[CLS]`, `[SEP]` and `[MASK]` become their ids, wherever they are in a text
    words       control characters, accents and case removed; punctuation and ideographs alone
                (`ldm_core.bert.characters`)
    pieces      each word by greedy longest match (`ldm_core.bert.wordpiece`)
    call        [CLS], at most context_length - 2 tokens, [SEP], padding

CompVis's counterpart is `BERTTokenizer`, which wraps transformers' `BertTokenizerFast` of bert-base-uncased.
Ids are equal for all strings that it accepts; lone surrogates, which it refuses, are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ldm_core.bert.characters import words
from ldm_core.bert.wordpiece import CONTINUES, END, PAD, SPECIAL_TOKENS, START, VOCAB_SIZE, cut, vocabulary
from ldm_core.support.prompts import SHOWN_LOSS, as_ids, as_prompts, describe_loss

if TYPE_CHECKING:
    from torch import Tensor

_SPECIAL = re.compile(f"({'|'.join(map(re.escape, SPECIAL_TOKENS))})")


@dataclass(frozen=True)
class BERTTokenizer:
    """Converts prompts to token ids (B, context_length) and back.

    context_length: positions of the text encoder, including the start and end tokens; at least 3.
    Raises ValueError for other values.
    """

    context_length: int = 77

    pad_token_id: ClassVar[int] = PAD
    bos_token_id: ClassVar[int] = START
    eos_token_id: ClassVar[int] = END
    vocab_size: ClassVar[int] = VOCAB_SIZE

    def __post_init__(self) -> None:
        if not isinstance(self.context_length, int) or self.context_length < 3:
            raise ValueError(f"context_length must be an int of at least 3, not {self.context_length!r}")

    def encode(self, text: str) -> list[int]:
        """The ids of a text of any length, without [CLS] and [SEP]. Raises ValueError if not a str."""
        if not isinstance(text, str):
            raise ValueError(f"expected a prompt as a str, got {type(text).__name__}")
        ids: list[int] = []
        for part in _SPECIAL.split(text):
            if part in SPECIAL_TOKENS:
                ids.append(SPECIAL_TOKENS[part])
            else:
                for word in words(part):
                    ids += cut(word)
        return ids

    def __call__(self, prompts: str | Sequence[str]) -> Tensor:
        """Token ids of one or B prompts, as a LongTensor (B, context_length).

        A prompt of more than context_length - 2 tokens is truncated, and a UserWarning quotes the lost text.
        Raises ValueError if `prompts` is not a str or a sequence of strs.
        """
        import torch

        from ldm_core.support.warn import warn

        rows = []
        room = self.context_length - 2
        for prompt in as_prompts(prompts):
            ids = self.encode(prompt)
            if len(ids) > room:
                lost = _text(ids[room : room + SHOWN_LOSS + 1])  # each token has a letter or more
                warn(describe_loss(prompt, len(ids), room, lost))
            row = [START, *ids[:room], END]
            rows.append(row + [PAD] * (self.context_length - len(row)))
        return torch.tensor(rows, dtype=torch.long).reshape(len(rows), self.context_length)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids (N,), such as a row of a tensor: lower-case, with one space after each word.

        [CLS], [SEP] and [PAD] are omitted; a word that is not in the vocabulary is "[UNK]". Punctuation marks
        are words. Raises ValueError for an invalid id.
        """
        return _text([token for token in as_ids(ids, VOCAB_SIZE) if token not in (START, END, PAD)])

    def tokens(self, text: str) -> list[str]:
        """One readable text for each id of `encode`; `##` marks a piece that continues a word."""
        pieces = vocabulary().pieces
        return [pieces[token] for token in self.encode(text)]


def _text(ids: list[int]) -> str:
    pieces = vocabulary().pieces
    return "".join(
        piece.removeprefix(CONTINUES) if piece.startswith(CONTINUES) else f" {piece}"
        for piece in (pieces[token] for token in ids)
    ).strip()
