"""BERT's WordPiece: from one word to the ids of its pieces.

A word is cut into the longest piece of the vocabulary that it begins with, then the longest that the rest
begins with, and so on (Wu et al. 2016, arXiv:1609.08144, section 4.1; Devlin et al. 2018, arXiv:1810.04805,
section 3). Pieces that continue a word begin with `##` in the vocabulary. A word that cannot be cut so, or of
more than 100 characters, is `[UNK]`.

The vocabulary is that of bert-base-uncased (`data/bert-base-uncased-vocab.txt.gz`), one piece per line; the
line's number from 0 is its id. It is read on first use.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

VOCAB_SIZE = 30522
PAD, UNKNOWN, START, END, MASK = 0, 100, 101, 102, 103
SPECIAL_TOKENS = {"[PAD]": PAD, "[UNK]": UNKNOWN, "[CLS]": START, "[SEP]": END, "[MASK]": MASK}
CONTINUES = "##"
LONGEST_WORD = 100  # characters of a word that is cut into pieces


@dataclass(frozen=True)
class Vocabulary:
    """pieces: by id, as the file spells them. first, later: ids of pieces that begin and continue a word."""

    pieces: tuple[str, ...]
    first: dict[str, int]
    later: dict[str, int]
    longest: int  # characters of the longest piece


def read_vocabulary() -> str:
    """The text of the vocabulary file. Each call reads the file."""
    packed = (Path(__file__).parent / "data" / "bert-base-uncased-vocab.txt.gz").read_bytes()
    return gzip.decompress(packed).decode("utf-8")


@lru_cache(maxsize=1)
def vocabulary() -> Vocabulary:
    """The vocabulary, read from its file once."""
    pieces = tuple(read_vocabulary().removesuffix("\n").split("\n"))
    ids = {piece: number for number, piece in enumerate(pieces)}
    later = {piece.removeprefix(CONTINUES): k for piece, k in ids.items() if piece.startswith(CONTINUES)}
    return Vocabulary(pieces, ids, later, max(map(len, pieces)))


def cut(word: str) -> list[int]:
    """The ids of one non-empty word from `characters.words`."""
    if len(word) > LONGEST_WORD:
        return [UNKNOWN]
    vocab = vocabulary()
    known, ids, start = vocab.first, [], 0
    while start < len(word):
        for end in range(min(len(word), start + vocab.longest), start, -1):
            found = known.get(word[start:end])
            if found is not None:
                break
        else:
            return [UNKNOWN]
        ids.append(found)
        known, start = vocab.later, end
    return ids
