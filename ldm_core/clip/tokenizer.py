"""CLIP's tokenizer: from a prompt to the ids of its words and parts of words.

Byte-pair encoding (Sennrich et al. 2016, arXiv:1508.07909) over the UTF-8 bytes of a word, so that no
text is out of vocabulary (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners",
section 2.2). A prompt passes through four stages:

    clean   repair broken Unicode, resolve HTML entities, collapse whitespace, lower the case
    split   runs of letters, single digits, runs of anything else, English contractions
    merge   each word's bytes, joined pair by pair in the order in which the pairs were learned
    call    start token, at most context_length - 2 tokens, end token, padding

An id says how its token was made: 0..255 are bytes, 256..511 bytes that end a word (written `</w>`), and
512 + k is the product of the k-th learned merge. So the smallest id among the possible merges is the one
to make first, and no table of ranks is needed beside the ids.

CompVis's counterpart is `FrozenCLIPEmbedder.tokenizer` (transformers' `CLIPTokenizer`), which pads with
the end token. The reference here is OpenAI's own algorithm in the form that open_clip ships: `encode`
gives its ids for every string, given the same version of ftfy. Ordinary text has the same ids in
transformers (5.23); the two differ where a prompt has one of these:

* What `clean` repairs or resolves: "&amp;", curly quotes, full-width letters. transformers does neither.
* Special tokens written out in a prompt: here, as in open_clip, `<start_of_text>` and `<end_of_text>`
  are the special tokens, and `<|startoftext|>` and `<|endoftext|>` are ordinary text; in transformers
  it is the other way round.
* A long s after an apostrophe, U+0345 (see `split`), and code points that one side's Unicode lacks.

The vocabulary is OpenAI's (`data/bpe_simple_vocab_16e6.txt.gz`), read when it is first needed.
"""

from __future__ import annotations

import gzip
import html
import operator
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from heapq import heapify, heappop, heappush
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

MERGES = 48894  # the file lists more; CLIP was trained with the first 49152 - 256 - 2
START_OF_TEXT = 512 + MERGES
END_OF_TEXT = START_OF_TEXT + 1
SPECIAL_TOKENS = {"<start_of_text>": START_OF_TEXT, "<end_of_text>": END_OF_TEXT}
END_OF_WORD = "</w>"

CACHED_WORDS = 2**14  # words whose ids are remembered: 4 MB of ordinary ones, 26 MB at worst, because
CACHED_LENGTH = 32  # a word of more characters than this is not

# Limits of added words, each of which is tried at each place of a prompt.
MAX_WORDS = 1024
MAX_WORD_LETTERS = 256
MAX_ALL_LETTERS = 2**13
MAX_WORD_IDS = 1024

SHOWN_LOSS = 120  # characters of a cut prompt's lost text that the warning quotes

AddedWords = tuple[tuple[str, tuple[int, ...]], ...]  # names, each with the ids that it becomes


def read_merges() -> list[tuple[str, str]]:
    """The learned merges, first learned first, in the symbols of `vocabulary`. Reads the file anew."""
    packed = (Path(__file__).parent / "data" / "bpe_simple_vocab_16e6.txt.gz").read_bytes()
    lines = gzip.decompress(packed).decode("utf-8").split("\n", MERGES + 1)
    pairs = [line.split(" ") for line in lines[1 : MERGES + 1]]
    return [(first, second) for first, second in pairs]


def vocabulary() -> list[str]:
    """Every token as the vocabulary file spells it, by id: one character for each byte, then maybe `</w>`."""
    return _spell(read_merges())


def _spell(merges: list[tuple[str, str]]) -> list[str]:
    single = list(_byte_symbols().values())
    ending = [symbol + END_OF_WORD for symbol in single]
    return [*single, *ending, *(first + second for first, second in merges), *SPECIAL_TOKENS]


def _byte_symbols() -> dict[int, str]:
    """The character that stands for each byte in the vocabulary file, in the order of the tokens' ids.

    Bytes that are printable in Latin-1 stand for themselves; the other 68 take the characters from
    U+0100 on, so that no symbol is a space or a control character.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + k) for k, byte in enumerate(others)}


@dataclass(frozen=True)
class _Tables:
    byte_ids: tuple[int, ...]  # byte -> its id
    merges: dict[tuple[int, int], int]  # two neighbouring ids -> the id that they merge to
    token_bytes: tuple[bytes, ...]  # id -> the bytes that it stands for; empty for special tokens
    ends_word: tuple[bool, ...]  # id -> whether a word ends with it


@lru_cache(maxsize=1)
def _tables() -> _Tables:
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
    return _Tables(
        byte_ids=tuple(order.index(byte) for byte in range(256)),
        merges={pair: 512 + k for k, pair in enumerate(pairs)},
        token_bytes=(*token_bytes, b"", b""),
        ends_word=(*ends_word, False, False),
    )


def clean(text: str) -> str:
    """Repaired, unescaped, single-spaced and lower-case text; what the ids of a prompt are made from."""
    # ftfy takes longer than all else together, and cannot change printable ASCII that has no entities.
    if not (text.isascii() and text.isprintable() and "&" not in text):
        import ftfy

        try:
            text = html.unescape(html.unescape(ftfy.fix_text(text)))
        except ValueError:  # Python reads no numbers of more than 4,300 digits
            raise ValueError("the prompt has an HTML entity, &#…;, with too many digits") from None
    return " ".join(text.split()).lower()


@lru_cache(maxsize=1)
def _word_pattern() -> Any:
    import regex

    special = "|".join(SPECIAL_TOKENS)
    # Case still matters after lowering: under IGNORECASE "'s" also matches the long s of "'ſ".
    return regex.compile(
        rf"{special}|'s|'t|'re|'ve|'m|'ll|'d|\p{{L}}+|\p{{N}}|[^\s\p{{L}}\p{{N}}]+", regex.IGNORECASE
    )


def split(text: str) -> list[str]:
    """The words of cleaned text, which lose nothing but whitespace.

    There is one exception, which the reference makes too: U+0345, the Greek iota subscript as a character
    of its own, is dropped. Its other case is the letter iota, so that a pattern that ignores case does not
    count it among the non-letters; but it is no letter either.
    """
    return _word_pattern().findall(text)


def merge(word: str) -> tuple[int, ...]:
    """The ids of one word (not empty), by byte-pair encoding.

    Of all neighbours that can merge, the pair learned first does, leftmost first, until none can. The
    candidates wait in a heap, so that a word of n bytes takes O(n log n) steps: text without spaces, as
    in Chinese or Thai, is one long word. An entry whose tokens have since merged otherwise is skipped.
    """
    if word in SPECIAL_TOKENS:
        return (SPECIAL_TOKENS[word],)
    tables = _tables()
    merges = tables.merges
    ids = [tables.byte_ids[byte] for byte in word.encode("utf-8")]
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


def forget_words() -> None:
    """Empty the cache of words, which all tokenizers share. Only speed depends on it."""
    _cached_merge.cache_clear()


def _ordinary_ids(text: str) -> list[int]:
    """The ids of a text without added words."""
    ids: list[int] = []
    for word in split(clean(text)):
        ids.extend(_cached_merge(word) if len(word) <= CACHED_LENGTH else merge(word))
    return ids


@lru_cache(maxsize=8)
def _added_pattern(added: AddedWords) -> tuple[Any, AddedWords]:
    """What finds the added words in a prompt, one group for each, and the words in the groups' order."""
    import regex  # its \w has combining marks, so that a name is not found in a word that goes on with one

    longest_first = tuple(sorted(added, key=lambda word: -len(word[0])))
    groups = []
    for name, _ in longest_first:
        before = r"(?<!\w)" if regex.match(r"\w", name) else ""
        after = r"(?!\w)" if regex.match(r"\w", name[-1]) else ""
        spelled = r"\s+".join(regex.escape(part) for part in name.split())
        groups.append(f"({before}{spelled}{after})")
    return regex.compile("|".join(groups), regex.IGNORECASE), longest_first


def _check_added(added: Any, vocab_size: int) -> None:
    words = added if isinstance(added, tuple) else [added]
    if len(words) > MAX_WORDS:
        raise ValueError(f"expected at most {MAX_WORDS} added words, got {len(words):,}")
    taken: set[int] = set()
    for word in words:
        match word:
            case (str(name), tuple(ids)) if len(name) > MAX_WORD_LETTERS or len(ids) > MAX_WORD_IDS:
                raise ValueError(
                    f"an added word has at most {MAX_WORD_LETTERS} letters and {MAX_WORD_IDS} ids; "
                    f"{name!r:.40} has {len(name):,} and {len(ids):,}"
                )
            case (str(name), tuple(ids)) if name and ids and name == " ".join(name.split()):
                own = {token for token in ids if isinstance(token, int) and token >= vocab_size} - taken
                if len(own) < len(ids):
                    raise ValueError(f"{name!r} needs ids of its own from {vocab_size} on, not {ids!r:.60}")
                taken |= own
            case _:
                raise ValueError(
                    "added_words must be a tuple of (name, ids), where the name is words with single spaces "
                    f"between them and the ids are a tuple of ints, not {word!r:.60}"
                )
    letters = sum(len(name) for name, _ in added)
    if letters > MAX_ALL_LETTERS:
        raise ValueError(f"expected at most {MAX_ALL_LETTERS:,} letters in all added words, got {letters:,}")
    if added:
        pattern, groups = _added_pattern(added)
        for group, (name, _) in enumerate(groups, start=1):
            if pattern.fullmatch(name).lastindex != group:
                raise ValueError(f"the name {name!r} is already in use")


@dataclass(frozen=True)
class CLIPTokenizer:
    """From prompts to token ids (B, context_length) and back.

    `context_length`: positions of the text encoder, start and end token included; at least 3.
    `pad_token_id`: what fills the positions after the end token: 49407 for OpenAI's encoder (SD1), 0 for
    open_clip's (SD2).
    `added_words`: names beyond the vocabulary, each with the ids that it becomes, from `vocab_size` on, as
    `(("<cat-toy>", (49408, 49409)),)`. A name is found in the prompt as it was written, before `clean`,
    whatever its case, and as a whole word: where it begins or ends with a letter, a digit or "_", none may
    follow or precede it there. Of names that begin at the same place the longest is taken.
    Raises ValueError for other values, and for two names that differ only in case.
    """

    context_length: int = 77
    pad_token_id: int = END_OF_TEXT
    added_words: AddedWords = ()

    bos_token_id: ClassVar[int] = START_OF_TEXT
    eos_token_id: ClassVar[int] = END_OF_TEXT
    vocab_size: ClassVar[int] = END_OF_TEXT + 1

    def __post_init__(self) -> None:
        if not isinstance(self.context_length, int) or self.context_length < 3:
            raise ValueError(f"context_length must be an int of at least 3, not {self.context_length!r}")
        if not isinstance(self.pad_token_id, int) or not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(
                f"pad_token_id must be an int in 0..{self.vocab_size - 1}, not {self.pad_token_id!r}"
            )
        _check_added(self.added_words, self.vocab_size)

    def encode(self, text: str) -> list[int]:
        """The ids of a text of any length, without start and end token. Raises ValueError if not a str."""
        if not isinstance(text, str):
            raise ValueError(f"expected a prompt as a str, got {type(text).__name__}")
        if not self.added_words:
            return _ordinary_ids(text)
        pattern, groups = _added_pattern(self.added_words)
        ids, end = [], 0
        for found in pattern.finditer(text):
            ids += _ordinary_ids(text[end : found.start()])
            ids += groups[found.lastindex - 1][1]
            end = found.end()
        return ids + _ordinary_ids(text[end:])

    def __call__(self, prompts: str | Sequence[str]) -> Tensor:
        """One prompt or B of them as a LongTensor (B, context_length).

        A prompt of more than context_length - 2 tokens is cut, and a UserWarning quotes what was lost.
        Raises ValueError if `prompts` is not a str or a sequence of them, naming what came and where.
        """
        import torch

        rows = []
        for prompt in _as_prompts(prompts):
            ids = self.encode(prompt)
            room = self.context_length - 2
            if len(ids) > room:
                warnings.warn(self._describe_loss(prompt, ids), stacklevel=2)
            row = [self.bos_token_id, *ids[:room], self.eos_token_id]
            rows.append(row + [self.pad_token_id] * (self.context_length - len(row)))
        return torch.tensor(rows, dtype=torch.long).reshape(len(rows), self.context_length)

    def _describe_loss(self, prompt: str, ids: list[int]) -> str:
        room = self.context_length - 2
        lost = self.decode(ids[room:])
        if len(lost) > SHOWN_LOSS:
            lost = lost[: SHOWN_LOSS - 1] + "…"
        partly = ""
        for name, word in self.added_words:
            if ids[room] in word[1:]:
                kept = word.index(ids[room])
                partly = f" (of {name!r} only the last {len(word) - kept} of {len(word)} tokens)"
        return (
            f"the prompt {repr(prompt[:20])[1:-1]}… has {len(ids)} tokens, and only {room} fit between the "
            f"start and end tokens; lost: {lost!r}{partly}"
        )

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids (N,), a tensor's row included: lower-case, one space after each word.

        Start and end tokens are left out, and so is padding, which is the padding id after an end token
        (0 is also the id of a "!" inside a word). Bytes that are not UTF-8, as where a cut fell inside a
        character, become U+FFFD. Added words are given as they were added, also where a cut left only a
        part of their ids. Raises ValueError for what is not an id.
        """
        tables = _tables()
        # id -> its name, and the id before it in the name, or -1
        added = {token: (name, k) for name, word in self.added_words for k, token in pairwise((-1, *word))}
        data = bytearray()
        ended, last = False, None
        for token in _as_ids(ids, self.vocab_size, added):
            if token in added:
                name, previous = added[token]
                data += b"" if previous == last else name.encode("utf-8", errors="replace") + b" "
            elif not (ended and token == self.pad_token_id):
                data += tables.token_bytes[token]
                data += b" " if tables.ends_word[token] else b""
            ended, last = ended or token == self.eos_token_id, token
        return data.decode("utf-8", errors="replace").strip()

    def tokens(self, text: str) -> list[str]:
        """One readable piece for each id of `encode`; `</w>` marks the end of a word.

        Bytes that are only a part of a character are written as `\\xf0`. The ids of an added word are
        written as in diffusers: `<cat-toy>`, `<cat-toy>_1`, `<cat-toy>_2` …
        """
        tables = _tables()
        names = {token: name for name, token in SPECIAL_TOKENS.items()}
        for name, word in self.added_words:
            names |= {token: f"{name}_{k}" if k else name for k, token in enumerate(word)}
        return [
            names.get(token)
            or tables.token_bytes[token].decode("utf-8", errors="backslashreplace")
            + (END_OF_WORD if tables.ends_word[token] else "")
            for token in self.encode(text)
        ]


def _as_prompts(prompts: str | Sequence[str]) -> Sequence[str]:
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, Sequence) or isinstance(prompts, bytes | bytearray):
        raise ValueError(f"expected a prompt or a sequence of prompts, got {type(prompts).__name__}")
    for index, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise ValueError(f"expected every prompt to be a str, but prompt {index} is {prompt!r:.60}")
    return prompts


def _as_ids(ids: Any, vocab_size: int, added: Mapping[int, Any]) -> list[int]:
    values = ids.tolist() if hasattr(ids, "tolist") else ids
    if not isinstance(values, Iterable):
        raise ValueError(f"expected a sequence of token ids (N,), got {values!r:.60}")
    checked = []
    for value in values:
        token = operator.index(value) if hasattr(value, "__index__") else -1
        if not 0 <= token < vocab_size and token not in added:
            raise ValueError(
                f"expected token ids (N,) in 0..{vocab_size - 1}{' or of an added word' if added else ''}, "
                f"but one is {value!r:.60}"
            )
        checked.append(token)
    return checked
