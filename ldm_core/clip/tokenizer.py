"""CLIP's tokenizer: from a prompt to token ids.

A prompt passes through these stages:

    special   find special tokens and added words, which separate the rest into texts
    clean     repair broken Unicode, resolve HTML entities, collapse whitespace, convert to lower case
    split     runs of letters, single digits, runs of other characters, English contractions
    merge     byte-pair encoding of each word (`ldm_core.clip.bpe`)
    call      start token, at most context_length - 2 tokens, end token, padding

CompVis's counterpart is `FrozenCLIPEmbedder.tokenizer` (transformers' `CLIPTokenizer`), which pads with the
end token. `clean` and `split` are OpenAI's, in open_clip's version. `encode` gives open_clip's ids for every
string without `<|startoftext|>` and `<|endoftext|>`, given the same version of ftfy. transformers (5.23)
gives the same ids except in these cases:

* `clean` repairs or resolves a part of the text: "&amp;", curly quotes, full-width letters. transformers
  does neither.
* The text contains `<start_of_text>` or `<end_of_text>`, which are special tokens in open_clip alone. Here
  both spellings of the special tokens are recognised. `<|startoftext|>` and `<|endoftext|>` are recognised
  anywhere and in lower case only, as in transformers; OpenAI's pattern ignores case and misses them after
  punctuation.
* The text contains a long s after an apostrophe, U+0345 (see `split`), or a code point that only one side's
  version of Unicode defines.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

from ldm_core.clip.bpe import (
    END_OF_TEXT,
    END_OF_WORD,
    SPECIAL_TOKENS,
    START_OF_TEXT,
    encode_words,
    tables,
)
from ldm_core.support.prompts import as_ids, as_prompts, describe_loss

if TYPE_CHECKING:
    from torch import Tensor

# The special tokens as OpenAI and transformers spell them.
SPELLED = {"<|startoftext|>": START_OF_TEXT, "<|endoftext|>": END_OF_TEXT}

# Limits of added words. Each word is tried at each position of a prompt.
MAX_WORDS = 1024
MAX_WORD_LETTERS = 256
MAX_ALL_LETTERS = 2**13
MAX_WORD_IDS = 1024

AddedWords = tuple[tuple[str, tuple[int, ...]], ...]  # (name, ids) pairs


def clean(text: str) -> str:
    """The text with Unicode repaired, HTML entities resolved, whitespace collapsed, and in lower case."""
    # ftfy takes most of the time of `encode`, and never changes printable ASCII without entities.
    if not (text.isascii() and text.isprintable() and "&" not in text):
        import ftfy

        try:
            text = html.unescape(html.unescape(ftfy.fix_text(text)))
        except ValueError:  # Python converts no number of more than 4,300 digits
            raise ValueError("the prompt has an HTML entity, &#…;, with too many digits") from None
    return " ".join(text.split()).lower()


@lru_cache(maxsize=1)
def _word_pattern() -> Any:
    import regex

    special = "|".join([*SPECIAL_TOKENS, *(f"(?-i:{regex.escape(name)})" for name in SPELLED)])
    # IGNORECASE matters for lower-case text too: "'s" also matches "'ſ", an apostrophe and a long s.
    return regex.compile(
        rf"{special}|'s|'t|'re|'ve|'m|'ll|'d|\p{{L}}+|\p{{N}}|[^\s\p{{L}}\p{{N}}]+", regex.IGNORECASE
    )


def split(text: str) -> list[str]:
    """The words of cleaned text, which together contain all of its characters but whitespace and U+0345.

    U+0345 is the combining Greek iota subscript. The reference drops it too: its upper case is the letter
    iota, so the pattern, which ignores case, does not count it among the non-letters, and it is no letter.
    """
    words: list[str] = _word_pattern().findall(text)
    if not SPELLED.keys() & set(words):
        return words
    # These were in capitals or had entities in the prompt. transformers' pattern ends a word here, too, and
    # its byte-level stage then cuts the word into three.
    return [part for word in words for part in (("<|", word[2:-2], "|>") if word in SPELLED else (word,))]


@lru_cache(maxsize=8)
def _found_pattern(added: AddedWords) -> tuple[Any, AddedWords]:
    """A pattern of the special tokens and added words, one group each, and the words in the groups' order."""
    import regex  # its \w includes combining marks, so a name is not found before one

    special = tuple((name, (token,)) for name, token in SPELLED.items())
    longest_first = tuple(sorted((*special, *added), key=lambda word: -len(word[0])))
    groups = []
    for name, _ in longest_first:
        before = r"(?<!\w)" if regex.match(r"\w", name) else ""
        after = r"(?!\w)" if regex.match(r"\w", name[-1]) else ""
        spelled = r"\s+".join(regex.escape(part) for part in name.split())
        case = "-i:" if name in SPELLED else ":"
        groups.append(f"((?{case}{before}{spelled}{after}))")
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
                    f"expected at most {MAX_WORD_LETTERS} letters and {MAX_WORD_IDS} ids of an added word, "
                    f"but {name!r:.40} has {len(name):,} and {len(ids):,}"
                )
            case (str(name), tuple(ids)) if name and ids and name == " ".join(name.split()):
                own = {token for token in ids if isinstance(token, int) and token >= vocab_size} - taken
                if len(own) < len(ids):
                    raise ValueError(f"{name!r} needs unused ids from {vocab_size} on, not {ids!r:.60}")
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
        pattern, groups = _found_pattern(added)
        for group, (name, _) in enumerate(groups, start=1):
            if pattern.fullmatch(name).lastindex != group:
                raise ValueError(f"the name {name!r} is already in use")


@dataclass(frozen=True)
class CLIPTokenizer:
    """Converts prompts to token ids (B, context_length) and back.

    context_length: positions of the text encoder, including the start and end tokens; at least 3.
    pad_token_id: the id after the end token: 49407 for OpenAI's encoder (SD1), 0 for open_clip's (SD2).
    added_words: (name, ids) pairs, with ids from `vocab_size` on, such as `(("<cat-toy>", (49408, 49409)),)`.

    The name of an added word is found in the original prompt, before `clean`, in any case, and as a whole
    word: if it begins or ends with a letter, a digit or "_", no such character may precede or follow it. The
    longest of the names that begin at the same position is used.

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
        """The ids of a text of any length, without start and end tokens. Raises ValueError if not a str."""
        if not isinstance(text, str):
            raise ValueError(f"expected a prompt as a str, got {type(text).__name__}")
        pattern, groups = _found_pattern(self.added_words)
        ids, end = [], 0
        for found in pattern.finditer(text):
            ids += encode_words(split(clean(text[end : found.start()])))
            ids += groups[found.lastindex - 1][1]
            end = found.end()
        return ids + encode_words(split(clean(text[end:])))

    def __call__(self, prompts: str | Sequence[str]) -> Tensor:
        """Token ids of one or B prompts, as a LongTensor (B, context_length).

        A prompt of more than context_length - 2 tokens is truncated, and a UserWarning quotes the lost text.
        Raises ValueError if `prompts` is not a str or a sequence of strs.
        """
        import torch

        from ldm_core.support.warn import warn

        rows = []
        for prompt in as_prompts(prompts):
            ids = self.encode(prompt)
            room = self.context_length - 2
            if len(ids) > room:
                warn(self._describe_loss(prompt, ids))
            row = [self.bos_token_id, *ids[:room], self.eos_token_id]
            rows.append(row + [self.pad_token_id] * (self.context_length - len(row)))
        return torch.tensor(rows, dtype=torch.long).reshape(len(rows), self.context_length)

    def _describe_loss(self, prompt: str, ids: list[int]) -> str:
        room = self.context_length - 2
        partly = ""
        for name, word in self.added_words:
            if ids[room] in word[1:]:
                kept = word.index(ids[room])
                partly = f" (of {name!r} only the last {len(word) - kept} of {len(word)} tokens)"
        return describe_loss(prompt, len(ids), room, self._text(ids[room:], special=True)) + partly

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids (N,), such as a row of a tensor: lower-case, with one space after each word.

        Start tokens, end tokens and padding are omitted. Padding is a run of `pad_token_id` at the end of the
        ids, after an end token; elsewhere 0, open_clip's padding, is a "!" within a word. Bytes that are not
        valid UTF-8, as where a character was cut, become U+FFFD. An added word appears under its name, even
        if a cut left only a part of its ids. Raises ValueError for an invalid id.
        """
        kept = as_ids(ids, self.vocab_size, self._added)
        end = len(kept)
        while end and kept[end - 1] == self.pad_token_id:
            end -= 1
        if end and kept[end - 1] == self.eos_token_id:
            kept = kept[:end]
        return self._text(kept)

    @property
    def _added(self) -> dict[int, tuple[str, int]]:
        """The ids of added words, each with its word's name and the word's previous id, or -1."""
        return {token: (name, k) for name, word in self.added_words for k, token in pairwise((-1, *word))}

    def _text(self, ids: list[int], *, special: bool = False) -> str:
        """The text of valid ids; special: with the special tokens among them."""
        token_bytes, ends_word = tables().token_bytes, tables().ends_word
        added = self._added
        names = {token: name for name, token in SPELLED.items()} if special else {}
        data = bytearray()
        last = None
        for token in ids:
            if token in added:
                name, previous = added[token]
                data += b"" if previous == last else name.encode("utf-8", errors="replace") + b" "
            elif token in names:
                data += names[token].encode() + b" "
            else:
                data += token_bytes[token]
                data += b" " if ends_word[token] else b""
            last = token
        return data.decode("utf-8", errors="replace").strip()

    def tokens(self, text: str) -> list[str]:
        """One readable text for each id of `encode`; `</w>` marks the end of a word.

        A byte that is a part of a character is written as `\\xf0`. The ids of an added word are written as in
        diffusers: `<cat-toy>`, `<cat-toy>_1`, `<cat-toy>_2` …
        """
        token_bytes, ends_word = tables().token_bytes, tables().ends_word
        names = {token: name for name, token in SPECIAL_TOKENS.items()}
        for name, word in self.added_words:
            names |= {token: f"{name}_{k}" if k else name for k, token in enumerate(word)}
        return [
            names.get(token)
            or token_bytes[token].decode("utf-8", errors="backslashreplace")
            + (END_OF_WORD if ends_word[token] else "")
            for token in self.encode(text)
        ]
