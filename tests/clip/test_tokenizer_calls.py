"""What a call of the tokenizer gives, and the way back to text."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tokenizer_texts import ANY_CHARACTER, SCRIPT_TEXT, TOKENIZER, many

from ldm_core.clip import tokenizer as module
from ldm_core.clip.bpe import END_OF_TEXT, SPECIAL_TOKENS, START_OF_TEXT
from ldm_core.clip.tokenizer import CLIPTokenizer, clean, split

# ---- __call__ -------------------------------------------------------------------------------------


@many
@given(st.lists(st.text(max_size=20), max_size=5))
def test_a_batch_is_its_prompts_one_by_one(prompts: list[str]) -> None:
    rows = TOKENIZER(prompts)
    assert rows.shape == (len(prompts), 77)
    assert rows.dtype == torch.int64
    assert all(torch.equal(rows[k], TOKENIZER(prompt)[0]) for k, prompt in enumerate(prompts))


@pytest.mark.parametrize("pad", [49407, 0])
def test_a_row_is_start_ids_end_padding(pad: int) -> None:
    tokenizer = CLIPTokenizer(context_length=8, pad_token_id=pad)
    assert tokenizer("a cat").tolist() == [[START_OF_TEXT, 320, 2368, END_OF_TEXT, pad, pad, pad, pad]]
    assert tokenizer([""]).tolist() == [[START_OF_TEXT, END_OF_TEXT, *[pad] * 6]]


def test_75_tokens_fit() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        row = TOKENIZER("cat " * 75)[0].tolist()
    assert row == [START_OF_TEXT, *[2368] * 75, END_OF_TEXT]


def test_76_tokens_are_cut_and_the_warning_names_what_was_lost() -> None:
    with pytest.warns(UserWarning, match="has 77 tokens") as caught:
        rows = TOKENIZER(["a dog", "cat " * 74 + "on a Horse"])
    assert rows[1].tolist() == [START_OF_TEXT, *[2368] * 74, TOKENIZER.encode("on")[0], END_OF_TEXT]
    (warning,) = caught
    assert "lost: 'a horse'" in str(warning.message)
    assert warning.filename == __file__, "the warning should point at the caller"


def test_the_warning_stays_readable() -> None:
    with pytest.warns(UserWarning, match="word word") as caught:
        TOKENIZER("word " * 5000)
    assert len(str(caught[0].message)) < 250


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (None, "expected a prompt or a sequence of prompts, got NoneType"),
        (7, "got int"),
        (b"a cat", "got bytes"),
        ({"prompt": "a cat"}, "got dict"),
        (["a cat", None], "prompt 1 is None"),
        (["a cat", ["a dog"]], r"prompt 1 is \['a dog'\]"),
    ],
)
def test_prompts_that_are_not_strings(prompts: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TOKENIZER(prompts)


def test_encode_takes_a_string_only() -> None:
    with pytest.raises(ValueError, match="expected a prompt as a str, got list"):
        TOKENIZER.encode(["a cat"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "settings_", [{"context_length": 2}, {"context_length": 77.0}, {"pad_token_id": 49408}]
)
def test_settings_that_make_no_tokenizer(settings_: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings_))):
        CLIPTokenizer(**settings_)


# ---- decode and tokens ----------------------------------------------------------------------------


@many
@given(st.one_of(st.text(st.characters(max_codepoint=0x7F)), st.text(ANY_CHARACTER), SCRIPT_TEXT))
def test_decode_gives_the_cleaned_text_back_but_for_its_spaces(text: str) -> None:
    expected = "".join(word for word in split(clean(text)) if word not in SPECIAL_TOKENS)
    assert TOKENIZER.decode(TOKENIZER.encode(text)).replace(" ", "") == expected


@pytest.mark.parametrize("pad", [49407, 0])
def test_decode_leaves_out_what_the_row_adds(pad: int) -> None:
    tokenizer = CLIPTokenizer(pad_token_id=pad)
    assert tokenizer.decode(tokenizer("a cat!! in Köln 😀")[0]) == "a cat !! in köln 😀"


def test_decode_keeps_the_token_whose_id_pads_rows() -> None:
    """Id 0 is "!" within a run of punctuation."""
    tokenizer = CLIPTokenizer(pad_token_id=0)
    ids = tokenizer.encode("!£")
    assert ids[0] == 0
    assert tokenizer.decode(ids) == tokenizer.decode(tokenizer("!£")[0]) == "!£"


def test_decode_replaces_half_a_character() -> None:
    ids = TOKENIZER.encode("𠀋")
    assert TOKENIZER.decode(ids) == "𠀋"
    assert TOKENIZER.decode(ids[:-1]) == "\ufffd"


def test_decode_takes_what_holds_ids() -> None:
    ids = torch.tensor([320, 2368])
    assert TOKENIZER.decode(ids) == TOKENIZER.decode(ids.numpy()) == TOKENIZER.decode(list(ids)) == "a cat"
    assert TOKENIZER.decode(iter([320, 2368])) == "a cat"
    assert TOKENIZER.decode([]) == ""


@pytest.mark.parametrize(
    "ids", [[49408], [-1], [1.0], "a cat", 320, torch.tensor(320), torch.zeros(2, 2).long()]
)
def test_decode_names_what_is_no_id(ids: Any) -> None:
    with pytest.raises(ValueError, match=r"expected .*token ids"):
        TOKENIZER.decode(ids)


def test_tokens_are_readable_and_one_for_each_id() -> None:
    text = "An Astronaut's 😀 𠀋 <end_of_text>"
    pieces = TOKENIZER.tokens(text)
    assert pieces == [
        *("an</w>", "astronaut</w>", "'s</w>", "😀</w>"),
        *("\\xf0", "\\xa0", "\\x80", "\\x8b</w>", "<end_of_text>"),
    ]
    assert len(pieces) == len(TOKENIZER.encode(text))


# ---- the object -----------------------------------------------------------------------------------


def test_a_tokenizer_is_a_value() -> None:
    tokenizer = CLIPTokenizer(pad_token_id=0)
    assert pickle.loads(pickle.dumps(tokenizer)) == copy.deepcopy(tokenizer) == tokenizer
    assert tokenizer != CLIPTokenizer()


def test_encode_needs_no_torch() -> None:
    code = (
        "import importlib, sys, types\n"
        "sys.modules['torch'] = None\n"
        "for name in ('ldm_core', 'ldm_core.clip'):  # without the packages' own imports\n"
        "    sys.modules[name] = types.ModuleType(name)\n"
        f"sys.modules['ldm_core'].__path__ = [{str(Path(module.__file__).parents[1])!r}]\n"
        f"sys.modules['ldm_core.clip'].__path__ = [{str(Path(module.__file__).parent)!r}]\n"
        "tokenizer = importlib.import_module('ldm_core.clip.tokenizer')\n"
        "assert not {'ftfy', 'regex'} & set(sys.modules), 'imported before they are needed'\n"
        "print(tokenizer.CLIPTokenizer().encode('a cat'))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.stdout.strip(), result.stderr) == ("[320, 2368]", "")


def test_an_entity_of_too_many_digits_is_named() -> None:
    with pytest.raises(ValueError, match=r"^the prompt has an HTML entity, &#…;, with too many digits$"):
        CLIPTokenizer()(f"a &#{'9' * 5000}; cat")
