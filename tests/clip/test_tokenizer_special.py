"""Special tokens that a prompt spells out, against transformers' tokenizer, which CompVis uses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tiny_clip import tiny_clip
from support.tokenizer_texts import ANY_CHARACTER, TOKENIZER, many

from ldm_core.clip.bpe import END_OF_TEXT, START_OF_TEXT
from ldm_core.clip.tokenizer import SPELLED, CLIPTokenizer, clean

FIRST = CLIPTokenizer.vocab_size


def reference_ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("<|startoftext|>", [START_OF_TEXT]),
        ("a <|endoftext|> b", [320, END_OF_TEXT, 321]),
        ("cat<|endoftext|>cat", [2368, END_OF_TEXT, 2368]),
        ("!<|endoftext|>!", [256, END_OF_TEXT, 256]),
        ("<<|endoftext|>>", [283, END_OF_TEXT, 285]),
        ("<|endoftext|><|endoftext|>\n", [END_OF_TEXT, END_OF_TEXT]),
        ("it'<|endoftext|>s", [585, 262, END_OF_TEXT, 338]),
        ("<|ENDOFTEXT|>", [27, 347, 40786, 4160, 91, 285]),
        ("<|ENDOFTEXT|>'s", [27, 347, 40786, 4160, 91, 285, 568]),
        ("<|endoftext|", [27, 347, 40786, 4160, 347]),
    ],
)
def test_ids_of_special_tokens_equal_transformers(
    transformers_tokenizer: Any, text: str, ids: list[int]
) -> None:
    assert TOKENIZER.encode(text) == ids == reference_ids(transformers_tokenizer, text)


FRAGMENTS = st.sampled_from(
    [
        *SPELLED,
        *("<|ENDOFTEXT|>", "<|StartOfText|>", "<|endoftext", "endoftext|>", "<|", "|>", "<", ">", "|"),
        *("a", "cat", "CAT", "1", "42", "é", "猫", "🐱", "'", "'s", "'LL", "!", "?!", " ", "  ", "\n", "\t"),
    ]
)


@many
@given(st.lists(FRAGMENTS, max_size=12).map("".join))
def test_ids_equal_transformers_around_special_tokens(transformers_tokenizer: Any, text: str) -> None:
    assert TOKENIZER.encode(text) == reference_ids(transformers_tokenizer, text)


@many
@given(st.text(ANY_CHARACTER), st.text(ANY_CHARACTER), st.sampled_from([*SPELLED]))
def test_a_special_token_separates_any_two_texts(before: str, after: str, special: str) -> None:
    expected = [*TOKENIZER.encode(before), *TOKENIZER.encode(special), *TOKENIZER.encode(after)]
    assert TOKENIZER.encode(before + special + after) == expected


def test_padded_and_cut_rows_equal_transformers(transformers_tokenizer: Any) -> None:
    prompts = [
        "a <|endoftext|> b",
        "<|startoftext|>a cat<|endoftext|>",
        "word " * 74 + "<|endoftext|>",
        "word " * 74 + "<|endoftext|> and more",
        "word " * 80 + "<|endoftext|> x",
    ]
    expected = transformers_tokenizer(
        prompts, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
    )
    with pytest.warns(UserWarning, match="lost: ") as caught:
        rows = TOKENIZER(prompts)
    assert torch.equal(rows, expected["input_ids"])
    messages = [str(warning.message) for warning in caught]
    assert ["has 77 tokens" in messages[0], "has 82 tokens" in messages[1]] == [True, True]
    assert messages[0].endswith("lost: 'and more'")
    assert messages[1].endswith("lost: 'word word word word word <|endoftext|> x'")


def test_a_prompt_that_loses_only_a_special_token_names_it() -> None:
    with pytest.warns(UserWarning, match=r"lost: '<\|startoftext\|>'"):
        TOKENIZER("word " * 75 + "<|startoftext|>")


def test_special_tokens_stand_beside_added_words() -> None:
    tokenizer = CLIPTokenizer(added_words=(("<cat-toy>", (FIRST,)), ("endoftext", (FIRST + 1,))))
    text = "a<|endoftext|><cat-toy><|startoftext|> endoftext <|ENDOFTEXT|>"
    assert tokenizer.encode(text)[:5] == [320, END_OF_TEXT, FIRST, START_OF_TEXT, FIRST + 1]
    assert tokenizer.encode(text)[5:] == [*TOKENIZER.encode("<|"), FIRST + 1, *TOKENIZER.encode("|>")]


@pytest.mark.parametrize("name", SPELLED)
def test_a_special_token_is_no_name_for_an_added_word(name: str) -> None:
    with pytest.raises(ValueError, match="is already in use"):
        CLIPTokenizer(added_words=((name, (FIRST,)),))


def test_entities_spell_no_special_token() -> None:
    assert END_OF_TEXT not in TOKENIZER.encode("&lt;|endoftext|&gt;")
    assert clean("&lt;|endoftext|&gt;") == "<|endoftext|>"


@pytest.mark.parametrize("pad", [0, 49407])
def test_decode_keeps_what_follows_a_written_end(pad: int) -> None:
    """Id 0, a "!" within a word, is padding only at the end of a row."""
    tokenizer = CLIPTokenizer(pad_token_id=pad)
    ids = tokenizer.encode("a <|endoftext|> !£ b")
    assert tokenizer.decode(ids) == tokenizer.decode(tokenizer("a <|endoftext|> !£ b")[0]) == "a !£ b"
    assert tokenizer.tokens("<|endoftext|> a") == ["<end_of_text>", "a</w>"]


def test_texts_are_pooled_at_the_first_end() -> None:
    """As in OpenAI's and transformers' models: causal attention hides what follows."""
    clip = tiny_clip()
    with torch.no_grad():
        short, long, other = clip.encode_text(["a", "a<|endoftext|>cat", "a cat"])
    assert torch.allclose(short, long, atol=1e-6)
    assert not torch.allclose(short, other, atol=1e-3)
