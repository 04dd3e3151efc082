"""Exercise 9: byte-pair encoding of a word (Sennrich et al. 2016, arXiv:1508.07909, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import pairwise

from ldm_core.clip import bpe
from ldm_core.exercises.user_file import UserFile, Wrong

Symbols = list[str]
Ranks = dict[tuple[str, str], int]

# Of CLIP's vocabulary. Each mistake below gives other tokens for one of them.
WORDS = ("cat", "couscous", "hahahahaha", "xylophonist")


@lru_cache(maxsize=1)
def clip_ranks() -> Ranks:
    """The merges of CLIP's vocabulary that occur in the words, as a table of their ranks."""
    text = " ".join(word + bpe.END_OF_WORD for word in WORDS)
    ranks = {pair: rank for rank, pair in enumerate(bpe.read_merges())}
    return {pair: rank for pair, rank in ranks.items() if "".join(pair) in text}


def library_tokens(word: str) -> Symbols:
    """The tokens of a word of ASCII letters."""
    tables = bpe.tables()
    ids = bpe.merge(word)
    return [tables.token_bytes[k].decode() + (bpe.END_OF_WORD if tables.ends_word[k] else "") for k in ids]


def check(answer: UserFile) -> Iterator[str]:
    merge = answer.get("merge")
    ranks = clip_ranks()

    def merged_by_user(word: str) -> Symbols:
        actual = answer.call(merge, symbols_of(word), ranks)
        if not isinstance(actual, (list, tuple)):
            raise Wrong(f"merge must return a list of symbols, not a {type(actual).__name__}.")
        return list(actual)

    for word in ("a", *WORDS):
        yield "a word of one letter" if word == "a" else f"the tokens of {word!r}"
        actual = merged_by_user(word)
        _expect_same_text(word, actual)
        expected = library_tokens(word)
        if actual != expected:
            theirs = {other: merged_by_user(other) for other in WORDS}  # several mistakes may give one word
            raise Wrong(f"{_recognised(theirs, ranks)}The result is {actual}; expected {expected}.")


def symbols_of(word: str) -> Symbols:
    return [*word[:-1], word[-1] + bpe.END_OF_WORD]


def _recognised(theirs: dict[str, Symbols], ranks: Ranks) -> str:
    """The mistake that gives all of the answers, in words."""
    found = {word: mistakes(symbols_of(word), ranks) for word in theirs}
    for words in found[WORDS[0]]:
        if all(found[word][words] == answer for word, answer in theirs.items()):
            return words + "\n"
    return ""


def _expect_same_text(word: str, actual: Symbols) -> None:
    text = "".join(map(str, actual))
    if text != word + bpe.END_OF_WORD:
        raise Wrong(
            f"The symbols together must spell {word + bpe.END_OF_WORD!r}, as before; yours, {actual}, spell "
            f"{text!r}. A merge replaces two symbols by `first + second`, and keeps all others."
        )


def mistakes(symbols: Symbols, ranks: Ranks) -> dict[str, Symbols]:
    whole = "".join(symbols)
    return {
        "Nothing is merged.": list(symbols),
        "You merge the leftmost pair that is in the table. The next merge is the pair of the lowest rank, "
        "wherever it is.": merged(symbols, ranks, lambda pairs: pairs[0]),
        "You merge the rightmost pair that is in the table. The next merge is the pair of the lowest rank, "
        "wherever it is.": merged(symbols, ranks, lambda pairs: pairs[-1]),
        "You merge the pair of the highest rank. The lowest rank was learned first, and goes first.": merged(
            symbols, ranks, lambda pairs: max(pairs, key=lambda pair: ranks[pair])
        ),
        "You merge all pairs of a pass that are in the table. One merge at a time: the pair of the lowest "
        "rank, and then look again, since merges make new pairs.": all_pairs(symbols, ranks),
        "You stop after one merge: go on as long as a pair is in the table.": merged(
            symbols, ranks, lambda pairs: min(pairs, key=lambda pair: ranks[pair]), limit=1
        ),
        "You merge each pair at one place only. A pair that stands in the word twice is merged twice.": (
            once_each(symbols, ranks)
        ),
        "You take the longest tokens from the left. Byte-pair encoding merges by rank instead.": longest(
            symbols, ranks
        ),
        "You return the whole word: what is not in the table stays apart.": [whole],
    }


def merged(
    symbols: Symbols,
    ranks: Ranks,
    choose: Callable[[list[tuple[str, str]]], tuple[str, str]],
    limit: int = 1000,
) -> Symbols:
    """Merge the pair that `choose` takes of those in the table, at its leftmost place, `limit` times."""
    symbols = list(symbols)
    for _ in range(limit):
        pairs = [pair for pair in pairwise(symbols) if pair in ranks]
        if not pairs:
            break
        first, second = choose(pairs)
        k = next(k for k, pair in enumerate(pairwise(symbols)) if pair == (first, second))
        symbols[k : k + 2] = [first + second]
    return symbols


def all_pairs(symbols: Symbols, ranks: Ranks) -> Symbols:
    """Passes from left to right that merge every pair in the table."""
    symbols = list(symbols)
    while True:
        result: Symbols = []
        k = 0
        while k < len(symbols):
            both = tuple(symbols[k : k + 2]) in ranks
            result.append("".join(symbols[k : k + 2]) if both else symbols[k])
            k += 2 if both else 1
        if result == symbols:
            return result
        symbols = result


def once_each(symbols: Symbols, ranks: Ranks) -> Symbols:
    """The right order of merges, but each pair at its leftmost place only."""
    symbols, left = list(symbols), dict(ranks)
    while True:
        pairs = [pair for pair in pairwise(symbols) if pair in left]
        if not pairs:
            return symbols
        pair = min(pairs, key=lambda pair: ranks[pair])
        symbols = merged(symbols, {pair: 0}, lambda pairs: pairs[0], limit=1)
        del left[pair]


def longest(symbols: Symbols, ranks: Ranks) -> Symbols:
    """The longest token that the rest of the word begins with, again and again."""
    known = {first + second for first, second in ranks}
    result: Symbols = []
    k = 0
    while k < len(symbols):
        end = next(e for e in range(len(symbols), k, -1) if e == k + 1 or "".join(symbols[k:e]) in known)
        result.append("".join(symbols[k:end]))
        k = end
    return result
