"""Texts in every script, for the tests of the tokenizer."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from functools import cache

from hypothesis import strategies as st
from support.examples import examples

from ldm_core.clip.tokenizer import CLIPTokenizer

TOKENIZER = CLIPTokenizer()


many = examples(200)


@cache
def characters_by_script() -> dict[str, list[str]]:
    """All named characters, by the first word of their name: LATIN, GREEK, TAMIL, CJK, HANGUL, MUSICAL …"""
    groups: dict[str, list[str]] = defaultdict(list)
    for code in range(0x110000):
        name = unicodedata.name(chr(code), "")
        if name:
            groups[name.replace("-", " ").split()[0]].append(chr(code))
    return groups


ANY_CHARACTER = st.characters(exclude_categories=())  # lone surrogates and unassigned code points included


PIECES = st.sampled_from(
    [
        *(
            "<start_of_text>",
            "<end_of_text>",
            "<END_OF_TEXT>",
            "<ſtart_of_text>",
            "</w>",
            "<",
        ),
        *("'s", "'S", "'ſ", "’s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'", "''", '"', "“", "´"),
        *(
            "&amp;",
            "&lt;",
            "&#39;",
            "&#x27;",
            "&amp;lt;",
            "&notin",
            "&#28;",
            "&#x85;",
            "&nbsp;",
            "&",
            ";",
            "#",
        ),
        *("Ã©", "â€™", "â€œ", "Ð¿", "ðŸ˜€", "Ã ", "\xa0", "\x85", "\x9d", "\xad", "Â", "â", "€"),
        *(" ", "  ", "\t", "\n", "\r", "\r\n", "\x0b", "\x0c", "\x1c", "\x1f", "\u2028", "\u3000", "\u200b"),
        *("\x00", "\x1b[0m", "\x7f", "\ufeff", "\ufffd", "\ud83d", "\ude00", "\u200d", "\ufe0f", "\u20e3"),
        *("a", "B", "cat", "Photo", "0", "42", "½", "Ⅷ", "٣", "ﬁ", "Ａ", "ｶﾞ", "İ", "ſ", "K", "ß", "Σ", "Ǆ"),
        *("é", "e\u0301", "猫", "𠀋", "한", "하\u11ab", "ไท", "हि", "👩🏽", "🇩🇪", "!", "!?", "...", "_", "-"),
    ]
)


def text_of(script: str) -> st.SearchStrategy[str]:
    return st.text(st.sampled_from([*characters_by_script()[script], " ", "'", "1"]), max_size=30)


SCRIPT_TEXT = st.deferred(lambda: st.sampled_from(sorted(characters_by_script())).flatmap(text_of))
