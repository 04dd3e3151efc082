"""CLIP's byte-pair encoding: from one word to the ids of its parts.

Byte-pair encoding (Sennrich et al. 2016, arXiv:1508.07909) over the UTF-8 bytes of a word, so that no
text is out of vocabulary (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners",
section 2.2).

An id shows how its token is made: ids 0..255 are single bytes, ids 256..511 are bytes that end a word
(written `</w>`), and id 512 + k is the result of the k-th learned merge. Earlier merges have smaller ids, so
the next merge is the candidate with the smallest id, and no table of ranks is needed.

The vocabulary is OpenAI's (`data/bpe_simple_vocab_16e6.txt.gz`). It is read on first use.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from functools import lru_cache
from heapq import heapify, heappop, heappush
from itertools import pairwise
from pathlib import Path

MERGES = 48894  # the file lists more; CLIP was trained with the first 49152 - 256 - 2
START_OF_TEXT = 512 + MERGES
END_OF_TEXT = START_OF_TEXT + 1
SPECIAL_TOKENS = {"<start_of_text>": START_OF_TEXT, "<end_of_text>": END_OF_TEXT}  # open_clip's spelling
END_OF_WORD = "</w>"

CACHED_WORDS = 2**14  # words whose ids are cached: 4 MB for ordinary words, at most 26 MB, because
CACHED_LENGTH = 32  # longer words (in characters) are not cached


def read_merges() -> list[tuple[str, str]]:
    """The learned merges in the order of learning, in `vocabulary`'s symbols. Each call reads the file."""
    packed = (Path(__file__).parent / "data" / "bpe_simple_vocab_16e6.txt.gz").read_bytes()
    lines = gzip.decompress(packed).decode("utf-8").split("\n", MERGES + 1)
    pairs = [line.split(" ") for line in lines[1 : MERGES + 1]]
    return [(first, second) for first, second in pairs]


def vocabulary() -> list[str]:
    """All tokens in the order of their ids, as the vocabulary file spells them.

    A token has one character for each byte, and `</w>` at its end if it ends a word.
    """
    return _spell(read_merges())


def _spell(merges: list[tuple[str, str]]) -> list[str]:
    single = list(_byte_symbols().values())
    ending = [symbol + END_OF_WORD for symbol in single]
    return [*single, *ending, *(first + second for first, second in merges), *SPECIAL_TOKENS]


def _byte_symbols() -> dict[int, str]:
    """The vocabulary file's character for each byte, in the order of the tokens' ids.

    Bytes that are printable in Latin-1 represent themselves. The other 68 bytes are represented by the
    characters from U+0100 on, so that no symbol is a space or a control character.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + k) for k, byte in enumerate(others)}


@dataclass(frozen=True)
class Tables:
    """The vocabulary in the form that encoding and decoding look up."""

    byte_ids: tuple[int, ...]  # byte -> its id
    merges: dict[tuple[int, int], int]  # two adjacent ids -> the id of their merge
    token_bytes: tuple[bytes, ...]  # id -> its bytes; empty for special tokens
    ends_word: tuple[bool, ...]  # id -> whether it ends a word


@lru_cache(maxsize=1)
def tables() -> Tables:
    """The tables of CLIP's vocabulary, read from its file once."""
    merges = read_merges()
    spelled = _spell(merges)
    id_of = {symbol: k for k, symbol in enumerate(spelled)}
    order = list(_byte_symbols())
    token_bytes = [bytes([byte]) for byte in order] * 2
    ends_word = [False] * 256 + [True] * 256
    pairs = [(id_of[first], id_of[second]) for first, second in merges]
    for first, second in pairs:
        token_bytes.append(token_bytes[first] + token_bytes[second])
        ends_word.append(ends_word[second])
    return Tables(
        byte_ids=tuple(order.index(byte) for byte in range(256)),
        merges={pair: 512 + k for k, pair in enumerate(pairs)},
        token_bytes=(*token_bytes, b"", b""),
        ends_word=(*ends_word, False, False),
    )


def merge(word: str) -> tuple[int, ...]:
    """The ids of one non-empty word, by byte-pair encoding.

    As long as adjacent tokens can merge, the pair that was learned first is merged, at its leftmost place.
    A heap holds the candidates, so a word of n bytes takes O(n log n) steps; text without spaces, such as
    Chinese or Thai, is one long word. A candidate is skipped if one of its tokens has already merged.
    """
    if word in SPECIAL_TOKENS:
        return (SPECIAL_TOKENS[word],)
    merges, byte_ids = tables().merges, tables().byte_ids
    ids = [byte_ids[byte] for byte in word.encode("utf-8")]
    ids[-1] += 256
    end, gone = len(ids), -1
    left = list(range(-1, end - 1))
    right = list(range(1, end + 1))
    candidates = [(merges[pair], i) for i, pair in enumerate(pairwise(ids)) if pair in merges]
    heapify(candidates)
    while candidates:
        merged, i = heappop(candidates)
        j = right[i]
        if j == end or merges.get((ids[i], ids[j])) != merged:
            continue
        ids[i], ids[j] = merged, gone
        right[i] = right[j]
        if right[i] != end:
            left[right[i]] = i
            if (ids[i], ids[right[i]]) in merges:
                heappush(candidates, (merges[ids[i], ids[right[i]]], i))
        if left[i] >= 0 and (ids[left[i]], ids[i]) in merges:
            heappush(candidates, (merges[ids[left[i]], ids[i]], left[i]))
    return tuple(token for token in ids if token != gone)


_cached_merge = lru_cache(maxsize=CACHED_WORDS)(merge)


def encode_words(words: list[str]) -> list[int]:
    """The ids of several words, one after another; the ids of short words are cached."""
    ids: list[int] = []
    for word in words:
        ids.extend(_cached_merge(word) if len(word) <= CACHED_LENGTH else merge(word))
    return ids


def forget_words() -> None:
    """Empty the cache of words, which all tokenizers share. This affects speed only."""
    _cached_merge.cache_clear()
