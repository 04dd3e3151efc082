"""BERT's tokenizer against tokenizers' and transformers', on every script and on hostile prompts."""

from __future__ import annotations

import hashlib
import pickle
import random
import time
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tokenizer_texts import PIECES, SCRIPT_TEXT, characters_by_script, many

from ldm_core.bert import BERTTokenizer
from ldm_core.bert.characters import CACHED, LATER, normalised, words
from ldm_core.bert.wordpiece import SPECIAL_TOKENS, VOCAB_SIZE, read_vocabulary, vocabulary
from ldm_core.config import TextEncoderConfig
from ldm_core.testing import check_tokenizer

TOKENIZER = BERTTokenizer()
CLS, SEP, UNK, MASK = 101, 102, 100, 103


def test_the_vocabulary_is_the_published_one() -> None:
    text = read_vocabulary()
    digest = hashlib.sha256(text.encode("utf-8")).hexdigest()
    assert digest == "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"
    pieces = vocabulary().pieces
    assert len(pieces) == len(set(pieces)) == VOCAB_SIZE == 30522
    assert all(pieces[number] == name for name, number in SPECIAL_TOKENS.items())


# ---- ids ------------------------------------------------------------------------------------------

PHRASES = [
    "A photograph of an astronaut riding a horse, 4K, f/1.8 -- it's John's, they'll've said \"wow!!!\"",
    "Ein schöner Großstadtplatz in Österreich, naïve façade, İstanbul, ΣΊΣΥΦΟΣ, e\u0301a\u0308, ﬁne Å ™ ½",
    "一只猫坐在垫子上，𠀀𠮷𪚥 \U0002b820 豈 猫がマットの上に ｶﾀｶﾅ ＬＯＵＤ 고양이가 매트 위에",
    "👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈 1️⃣ zero\u200bwidth word\ufeffbom \u202eright\u202c soft\xadhyphen \ufffd \ue000private",
    "tab\tnew\nline\r\nform\x0cvertical\x0bnull\x00bell\x07\x7f \x1c\x1d \x85next \xa0nbsp \u2028line\u3000",
    "snake_case CamelCase kebab-case https://a.b/c?d=e#f user@host $1,234.56 {(x:1.2)} ` ^ ~ | + < = >",
    "[MASK]a[SEP]b[CLS][PAD] [UNK]. [mask] [ MASK ] [[MASK]] [MASK [unused0] ##ing # ## [CLS",
    "x" * 100 + " " + "x" * 101 + " " + "é" * 100 + " " + "e\u0301" * 100 + " unaffable" + "able" * 25,
    "≠ ≮ \u037e \u1fef Ω ℃ K ª º ¡ ¿ § ¶ · „“ «» — … \u166d\u1734\U000111c9 a\u1df6b a\u0301\u0323b",
    *("", " ", "!", "a", "\u0301", "\x00"),
]


def corpus() -> list[str]:
    rng = random.Random(0)
    texts = PHRASES + [text.upper() for text in PHRASES]
    texts += [unicodedata.normalize(form, text) for text in PHRASES for form in ("NFD", "NFKC")]
    named = characters_by_script()
    for script in (named[name] for name in sorted(named)):
        for count in (2, 5) if len(script) < 20 else (1, 4, 8, 16, 40):
            mixed = rng.choices(script, k=count) + rng.choices([*" .a7\u0301", "[MASK]"], k=count // 2)
            rng.shuffle(mixed)
            texts.append("".join(mixed))
    scripts = list(named.values())
    texts += [" ".join(rng.choice(script) for script in rng.sample(scripts, 10)) for _ in range(600)]
    texts += ["".join(chr(rng.randrange(0x250)) for _ in range(30)) for _ in range(300)]
    return texts


def test_ids_equal_tokenizers_in_every_script(reference: Callable[[str], list[int]]) -> None:
    texts = corpus()
    assert len(texts) >= 2000
    assert [text for text in texts if TOKENIZER.encode(text) != reference(text)] == []


def test_ids_equal_tokenizers_around_every_character(reference: Callable[[str], list[int]]) -> None:
    """Whether a character is dropped, a letter, an accent, a space or a word shows between two letters."""
    codes = [*range(0xD800), *range(0xE000, 0x20000), *range(0x20000, 0x110000, 97), *sorted(LATER)]
    for start in range(0, len(codes), 4096):
        text = " ".join(f"a{chr(code)}b" for code in codes[start : start + 4096])
        assert TOKENIZER.encode(text) == reference(text), f"{codes[start]:x}"


ENCODABLE = st.characters(exclude_categories=("Cs",))
SPECIAL = st.sampled_from([*SPECIAL_TOKENS, "[", "]", "MASK]", "[mask]", "##", "ing", "a", " ", "é", "猫"])
TEXTS = st.one_of(
    st.text(ENCODABLE),
    SCRIPT_TEXT,
    st.lists(PIECES.filter(lambda piece: unicodedata.category(piece[0]) != "Cs"), max_size=12).map("".join),
    st.lists(SPECIAL, max_size=12).map("".join),
    st.text(st.sampled_from("etaoinshrdlcumwfg "), max_size=120),
)


@many
@given(TEXTS)
def test_ids_equal_tokenizers_on_generated_text(reference: Callable[[str], list[int]], text: str) -> None:
    assert TOKENIZER.encode(text) == reference(text)


@many
@given(st.text(st.characters(exclude_categories=())))
def test_lone_surrogates_which_tokenizers_refuses_are_dropped(text: str) -> None:
    plain = "".join(char for char in text if unicodedata.category(char) != "Cs")
    assert TOKENIZER.encode(text) == TOKENIZER.encode(plain)


def test_rows_equal_transformers(vocabulary_file: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.BertTokenizerFast.from_pretrained(vocabulary_file.parent)
    texts = [*PHRASES, "word " * 75, "word " * 76, "word " * 74 + "[SEP] and more", "unaffable " * 30]
    expected = tokenizer(texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of these texts are too long, and are meant to be
        assert torch.equal(TOKENIZER(texts), expected["input_ids"])


def test_characters_that_the_table_counts_as_letters_are_in_no_piece() -> None:
    """So it changes only what is around them, and a word with one is [UNK], in any order of its marks."""
    letters = {char for piece in vocabulary().pieces for char in piece}
    assert not letters & set(map(chr, LATER))
    assert not any(unicodedata.combining(char) for char in letters)


# ---- rows -----------------------------------------------------------------------------------------


def test_an_empty_prompt_is_start_end_padding() -> None:
    assert TOKENIZER("").tolist() == [[CLS, SEP, *[0] * 75]]
    assert TOKENIZER([]).shape == (0, 77)


def test_a_row_is_start_ids_end_padding() -> None:
    rows = BERTTokenizer(context_length=6)(["a cat", "a [MASK]"])
    assert rows.tolist() == [[CLS, 1037, 4937, SEP, 0, 0], [CLS, 1037, MASK, SEP, 0, 0]]
    assert rows.dtype == torch.long


def test_it_meets_the_contract_of_tokenizers() -> None:
    check_tokenizer(TOKENIZER, TextEncoderConfig(vocab_size=VOCAB_SIZE))


def test_76_tokens_are_cut_and_the_warning_names_what_was_lost() -> None:
    with pytest.warns(UserWarning, match="has 77 tokens, but only 75 fit") as caught:
        rows = TOKENIZER(["a dog", "cat " * 74 + "on a Horse"])
    assert rows[1].tolist() == [CLS, *[4937] * 74, 2006, SEP]
    (warning,) = caught
    assert "lost: 'a horse'" in str(warning.message)
    assert warning.filename == __file__, "the warning should point at the caller"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert TOKENIZER("cat " * 75)[0].tolist() == [CLS, *[4937] * 75, SEP]


def test_the_warning_stays_readable() -> None:
    with pytest.warns(UserWarning, match="word word") as caught:
        TOKENIZER("word " * 5000)
    assert len(str(caught[0].message)) < 250


@pytest.mark.parametrize("length", [2, 0, "77", None, 77.0])
def test_impossible_lengths(length: Any) -> None:
    with pytest.raises(ValueError, match="context_length must be an int of at least 3"):
        BERTTokenizer(context_length=length)


@pytest.mark.parametrize("prompts", [None, 3, b"cat", ["a", 3], {"a"}])
def test_prompts_that_are_not_text(prompts: Any) -> None:
    with pytest.raises(ValueError, match=r"expected (a|every) prompt"):
        TOKENIZER(prompts)
    with pytest.raises(ValueError, match="expected a prompt as a str"):
        TOKENIZER.encode(["a cat"])  # type: ignore[arg-type]


# ---- back to text ---------------------------------------------------------------------------------


def test_decode_and_tokens() -> None:
    text = "An unaffable CAT, isn't [MASK] naïve?"
    assert TOKENIZER.decode(TOKENIZER(text)[0]) == "an unaffable cat , isn ' t [MASK] naive ?"
    assert TOKENIZER.tokens("unaffable 𓀀") == ["una", "##ffa", "##ble", "[UNK]"]
    assert TOKENIZER.decode([UNK, 0, CLS]) == "[UNK]"
    assert TOKENIZER.decode([]) == ""


@many
@given(st.text(st.sampled_from("etaoinshrdlu ,.'É"), max_size=60))
def test_decoded_text_has_the_same_ids(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.encode(TOKENIZER.decode(ids)) == ids


@pytest.mark.parametrize("ids", [[30522], [-1], ["a"], [1.5], 3, None])
def test_ids_that_do_not_exist(ids: Any) -> None:
    with pytest.raises(ValueError, match=r"expected (token ids \(N,\) in 0..30521|a sequence of token ids)"):
        TOKENIZER.decode(ids)


def test_a_tokenizer_is_a_value() -> None:
    assert pickle.loads(pickle.dumps(TOKENIZER)) == TOKENIZER != BERTTokenizer(context_length=92)


# ---- hostile prompts ------------------------------------------------------------------------------

HOSTILE: dict[str, Callable[[int], str]] = {
    "a word of many letters": lambda n: "a" * n,
    "many words": lambda n: "ab " * (n // 3),
    "many marks, in the wrong order": lambda n: "a" + "\u0301\u0323" * (n // 2),
    "marks that are kept": lambda n: "\U0001d165\u302e" * (n // 2),
    "words that fail late": lambda n: ("x" * 99 + "𓀀 ") * (n // 101),
    "beginnings of special tokens": lambda n: "[MASK" * (n // 5),
    "spaces": lambda n: " " * n,
    "ideographs": lambda n: "猫" * n,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_time_is_linear_in_the_prompt(kind: str) -> None:
    """100,000 characters take at most a third of a second on a slow core; a quadratic step takes minutes."""
    text = HOSTILE[kind](100_000)
    start = time.process_time()
    TOKENIZER.encode(text)
    assert time.process_time() - start < 3


def test_the_table_of_characters_stays_small() -> None:
    from ldm_core.bert.characters import _TABLE

    words("".join(map(chr, range(CACHED, CACHED + 1000))))
    assert max(_TABLE, default=0) < CACHED
    assert normalised("É") == words("É")[0] == "e"
