"""Words that are added to the tokenizer."""

from __future__ import annotations

import copy
import itertools
import pickle
import time
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support.tokenizer_texts import ANY_CHARACTER, PIECES, SCRIPT_TEXT, TOKENIZER, many

from ldm_core.clip.bpe import END_OF_TEXT, START_OF_TEXT
from ldm_core.clip.tokenizer import CLIPTokenizer

# ---- added words ----------------------------------------------------------------------------------

FIRST = CLIPTokenizer.vocab_size


TOY = (FIRST, FIRST + 1, FIRST + 2)


ADDED = CLIPTokenizer(added_words=(("<cat-toy>", TOY), ("my-Emb", (FIRST + 3,)), ("my-emb 2", (FIRST + 4,))))


def ids_between(*parts: str | tuple[int, ...]) -> list[int]:
    """Ids of texts, by a tokenizer without added words, and of names."""
    lists = [TOKENIZER.encode(part) if isinstance(part, str) else part for part in parts]
    return [token for ids in lists for token in ids]


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        ("a <cat-toy> on a table", ["a", TOY, "on a table"]),
        ("<CAT-Toy>", [TOY]),
        ("a<cat-toy>b,<cat-toy>", ["a", TOY, "b,", TOY]),
        ("<cat-toy><cat-toy>'s", [TOY, TOY, "'s"]),
        ("the <cat-toy", ["the <cat-toy"]),
        ("&lt;cat-toy&gt; &amp; <cat-toy>", ["<cat-toy> &", TOY]),
        ("MY-EMB, (my-emb:1.2)", [(FIRST + 3,), ", (", (FIRST + 3,), ":1.2)"]),
        ("my-embs xmy-emb my-emb_ 1my-emb my-emb2", ["my-embs xmy-emb my-emb_ 1my-emb my-emb2"]),
        ("my-embé my-embe\u0301 emy-emb", ["my-embé my-embe\u0301 emy-emb"]),
        ("my-emb\u0301 \u0301my-emb", ["my-emb\u0301 \u0301my-emb"]),
        ("-my-emb- my-my-emb", ["-", (FIRST + 3,), "- my-", (FIRST + 3,)]),
        ("my-emb 2 my-emb 3 My-Emb\n\t 2", [(FIRST + 4,), (FIRST + 3,), "3", (FIRST + 4,)]),
        ("my-emb 23", [(FIRST + 3,), "23"]),
    ],
)
def test_names_are_found_as_whole_words(prompt: str, parts: list[str | tuple[int, ...]]) -> None:
    assert ADDED.encode(prompt) == ids_between(*parts)


def test_the_longest_name_comes_first_whatever_the_order_of_adding() -> None:
    words = [("a", (FIRST,)), ("a b", (FIRST + 1,)), ("a b c", (FIRST + 2,)), ("<a", (FIRST + 3,))]
    for order in itertools.permutations(words):
        tokenizer = CLIPTokenizer(added_words=order)
        assert tokenizer.encode("a b c A B <a a") == [FIRST + 2, FIRST + 1, FIRST + 3, FIRST]


@many
@given(st.one_of(st.text(ANY_CHARACTER), SCRIPT_TEXT, st.lists(PIECES, max_size=12).map("".join)))
def test_prompts_without_a_name_have_the_ids_they_had(text: str) -> None:
    assert ADDED.encode(text) == TOKENIZER.encode(text)
    assert ADDED.tokens(text) == TOKENIZER.tokens(text)
    assert ADDED.decode(TOKENIZER.encode(text)) == TOKENIZER.decode(TOKENIZER.encode(text))


@many
@given(st.text(ANY_CHARACTER, min_size=1), st.lists(PIECES, max_size=6), st.lists(PIECES, max_size=6))
def test_any_name_is_found_between_any_texts(name: str, before: list[str], after: list[str]) -> None:
    name = " ".join(name.split())
    texts = ["".join(before) + " ", " " + "".join(after)]
    prompt = texts[0] + name + texts[1]
    assume(name and "İ" not in prompt)  # to a pattern its other case is "i", to `casefold` it is not
    folded = " ".join(prompt.split()).casefold()
    assume(folded.find(name.casefold()) == folded.rfind(name.casefold()))
    tokenizer = CLIPTokenizer(added_words=((name, (FIRST, FIRST + 1)),))
    assert tokenizer.encode(prompt) == ids_between(texts[0], (FIRST, FIRST + 1), texts[1])
    assert len(tokenizer.tokens(prompt)) == len(tokenizer.encode(prompt))


def test_decode_gives_names_back() -> None:
    prompt = "a <cat-toy> , <cat-toy> <cat-toy> and my-Emb 3 my-emb 2"
    assert ADDED.decode(ADDED.encode(prompt)) == prompt
    assert ADDED.decode(ADDED("A <CAT-TOY>!")[0]) == "a <cat-toy> !"
    assert ADDED.decode(TOY[1:]) == ADDED.decode(TOY[:2]) == ADDED.decode([TOY[1]]) == "<cat-toy>"
    assert ADDED.decode([TOY[0], TOY[2]]) == ADDED.decode([TOY[0], TOY[0]]) == "<cat-toy> <cat-toy>"
    with pytest.raises(ValueError, match=r"in 0..49407 or of an added word, but one is 49413"):
        ADDED.decode([FIRST + 5])


def test_tokens_number_the_ids_of_a_name() -> None:
    pieces = ["a</w>", "<cat-toy>", "<cat-toy>_1", "<cat-toy>_2", "my-Emb"]
    assert ADDED.tokens("a <cat-toy> my-emb") == pieces


@pytest.mark.parametrize(
    ("room", "lost"),
    [
        (0, "lost: '<cat-toy> and a dog'"),
        (1, "lost: '<cat-toy> and a dog' (of '<cat-toy>' only the last 2 of 3 tokens)"),
        (2, "lost: '<cat-toy> and a dog' (of '<cat-toy>' only the last 1 of 3 tokens)"),
        (3, "lost: 'and a dog'"),
    ],
)
def test_the_warning_names_a_name_that_was_cut(room: int, lost: str) -> None:
    prompt = "cat " * (75 - room) + "<cat-toy> and a dog"
    with pytest.warns(UserWarning, match=f"has {75 - room + 6} tokens") as caught:
        (row,) = ADDED(prompt).tolist()
    assert row == [START_OF_TEXT, *[2368] * (75 - room), *TOY[:room], END_OF_TEXT]
    assert str(caught[0].message).endswith(lost)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((("a", (FIRST,)), ("A", (FIRST + 1,))), "the name 'A' is already in use|the name 'a' is already"),
        ((("straße", (FIRST,)), ("STRAẞE", (FIRST + 1,))), "is already in use"),
        ((("a", (FIRST,)), ("b", (FIRST,))), "'b' needs unused ids from 49408 on"),
        ((("a", (FIRST, FIRST)),), "'a' needs unused ids"),
        ((("a", (END_OF_TEXT,)),), "from 49408 on, not"),
        ((("a", (49408.0,)),), "needs unused ids"),
        ((("a", ()),), "a tuple of ints, not"),
        (((" a", (FIRST,)),), "words with single spaces"),
        ((("a  b", (FIRST,)),), "words with single spaces"),
        ((("", (FIRST,)),), "words with single spaces"),
        (((b"a", (FIRST,)),), "words with single spaces"),
        (("ab",), "must be a tuple of"),
        ([("a", (FIRST,))], "must be a tuple of"),
        (None, "must be a tuple of"),
    ],
)
def test_words_that_cannot_be_added(words: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CLIPTokenizer(added_words=words)


def test_a_tokenizer_with_added_words_is_a_value() -> None:
    assert pickle.loads(pickle.dumps(ADDED)) == copy.deepcopy(ADDED) == ADDED
    assert hash(ADDED) == hash(copy.deepcopy(ADDED))
    assert CLIPTokenizer() != ADDED


def test_added_words_have_a_limit_in_all() -> None:
    """Each is tried at each place of a prompt."""
    words = tuple((f"{'a' * 200}{i}", (FIRST + i,)) for i in range(60))
    with pytest.raises(ValueError, match="at most 8,192 letters in all added words, got 12,110"):
        CLIPTokenizer(added_words=words)
    start = time.process_time()
    CLIPTokenizer(added_words=words[:40]).encode("a" * 2**15)
    assert time.process_time() - start < 5, "0.2 s here"
