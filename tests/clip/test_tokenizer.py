"""The tokenizer against open_clip's, which is OpenAI's own, and against what its documentation promises."""

from __future__ import annotations

import html
import importlib.util
import random
import unicodedata
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import ftfy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.tokenizer_texts import ANY_CHARACTER, PIECES, SCRIPT_TEXT, TOKENIZER, characters_by_script, many

from ldm_core.clip import bpe
from ldm_core.clip.bpe import END_OF_TEXT, merge, vocabulary
from ldm_core.clip.tokenizer import CLIPTokenizer, clean, split

# ---- the reference --------------------------------------------------------------------------------


def load_open_clip_tokenizer() -> ModuleType:
    """open_clip/tokenizer.py alone: importing the package would need torchvision."""
    package = importlib.util.find_spec("open_clip")
    if package is None or not package.submodule_search_locations:
        pytest.skip("the reference tokenizer is missing: pip install --no-deps open_clip_torch==3.3.0")
    path = Path(package.submodule_search_locations[0]) / "tokenizer.py"
    spec = importlib.util.spec_from_file_location("open_clip_tokenizer", path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOKENIZERS_PARALLELISM", "false")  # the file sets it; this puts it back
        spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture(scope="module")
def reference() -> Any:
    return load_open_clip_tokenizer().SimpleTokenizer()


PHRASES = [
    "A photograph of an astronaut riding a horse, 4K, f/1.8 -- it's John's, they'll've said \"wow!!!\"",
    "Ein schöner Großstadtplatz in Österreich, ÜBERMUT",
    "Ωραία θέα της θάλασσας, Οδυσσεύς ΣΊΣΥΦΟΣ",
    "Кот в космосе, ёлка, Їжак",
    "قطة تجلس على السجادة، ١٢٣",
    "חתול יושב על השטיח, שָׁלוֹם",
    "बिल्ली चटाई पर बैठी है, क्षत्रिय १२३",
    "বিড়াল মাদুরে বসে আছে ১২৩",
    "பூனை பாயில் அமர்ந்திருக்கிறது ௧௨௩",
    "แมวนั่งอยู่บนเสื่อ ๑๒๓ ก็น้ำ",
    "კატა ხალიჩაზე ზის, ᲥᲐᲠᲗᲣᲚᲘ",
    "Կատուն նստած է գորգի վրա և քնած",
    "고양이가 매트 위에 앉아 있다 ㅋㅋ 한글",
    "猫がマットの上に座っている、ｶﾀｶﾅ ＬＯＵＤ　ＮＯＩＳＥＳ",
    "一只猫坐在垫子上，𠀀𠮷𪚥𫝀",
    "👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈 🇩🇪🇯🇵 1️⃣ ☺️ 🧑🏿‍🚀",
    "e\u0301a\u0308 Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘!͖̬̰̙̗̿̋ͥͥ̂ͣ̐́́͜͞",
    "\u202eright to left\u202c \u200fmark\u200e \u2067isolate\u2069",
    "zero\u200bwidth\u200cnon\u200djoiner\u2060word\ufeffbom",
    "tab\tnew\nline\r\nreturn\rfeed\x0cvertical\x0bnull\x00bell\x07delete\x7f",
    "\x1b[31mred\x1b[0m \x1c\x1d\x1e\x1f \x85next \xa0nbsp \u2028line\u2029paragraph",
    "â€œquotesâ€\x9d schÃ¶n cafÃ© Ð¿Ñ€Ð¸Ð²ÐµÑ‚ voilÃ  âœ” I â¤ NY",
    "&lt;b&gt; rock &amp; roll &amp;amp; &#39;quoted&#x27; &hellip; &notit; &EACUTE; &#x1F600; &#28;&#xD800;",
    "<start_of_text> <END_OF_TEXT>! <|startoftext| > < |endoftext|> a<end_of_text>b !<end_of_text> <end_of",
    "'S 'ſ 'RE 're' 'LL ''s don't I’m ’Tis",
    "ﬁne ﬂuﬀ Ⅷ ½ x² H₂O ① ℃ K Å ™ İstanbul ıı ǅ ß ẞ ŉ",
    "\ud83d\ude00 \ud83d alone \ude00 \ud83d\ud83d\ude00",
    "\ue000private\U000f0000use \ufffe\uffff\U0010ffff \u0378 unassigned",
    "pneumonoultramicroscopicsilicovolcanoconiosis" * 3 + " " + "a" * 500 + " " + "xyzzy9" * 100,
    "snake_case CamelCase kebab-case https://example.com/a?b=c&d=e#f user@host $1,234.56 {(masterpiece:1.2)}",
    "</w> <w> w</w>",
    "",
    " ",
    "!",
]


def mojibake(text: str, encoding: str) -> str:
    return text.encode("utf-8", "replace").decode(encoding, "replace")


def corpus() -> list[str]:
    rng = random.Random(0)
    texts = list(PHRASES)
    texts += [
        mojibake(text, code) for text in PHRASES for code in ("latin-1", "cp1252", "mac-roman", "cp1251")
    ]
    texts += [html.escape(text) for text in PHRASES] + [text.upper() for text in PHRASES]
    texts += [unicodedata.normalize(form, text) for text in PHRASES for form in ("NFD", "NFKC")]
    scripts = characters_by_script()
    for name in sorted(scripts):
        script = scripts[name]
        for count in (2, 5) if len(script) < 20 else (1, 4, 8, 16, 40):
            mixed = rng.choices(script, k=count) + rng.choices([" ", ".", "a", "7", "\u0301"], k=count // 2)
            rng.shuffle(mixed)
            texts.append("".join(mixed))
    numerals = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)).startswith("N")]
    texts += ["".join(rng.choices(numerals, k=12)) for _ in range(100)]
    texts += [
        " ".join(rng.choice(script) for script in rng.sample(list(scripts.values()), 10)) for _ in range(200)
    ]
    return texts


def test_ids_equal_open_clips_in_every_script(reference: Any) -> None:
    texts = corpus()
    assert len(texts) >= 2000
    different = [text for text in texts if TOKENIZER.encode(text) != reference.encode(text)]
    assert different == []


def test_padded_and_cut_rows_equal_open_clips(reference: Any) -> None:
    texts = corpus()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of these texts are too long, and are meant to be
        ours = CLIPTokenizer(pad_token_id=0)(texts)
    assert torch.equal(ours, reference(texts))
    assert (ours[:, -1] == END_OF_TEXT).any(), "no text was cut"


@many
@given(st.one_of(st.text(ANY_CHARACTER), SCRIPT_TEXT, st.lists(PIECES, max_size=12).map("".join)))
def test_ids_equal_open_clips_on_generated_text(reference: Any, text: str) -> None:
    assert TOKENIZER.encode(text) == reference.encode(text)


def test_vocabulary_equals_open_clips(reference: Any) -> None:
    assert {token: index for index, token in enumerate(vocabulary())} == reference.encoder
    assert TOKENIZER.vocab_size == len(vocabulary()) == 49408
    assert vocabulary()[TOKENIZER.bos_token_id] == "<start_of_text>"
    assert vocabulary()[TOKENIZER.eos_token_id] == "<end_of_text>"


# ---- transformers' CLIPTokenizer, which CompVis uses -----------------------------------------------


def transformers_ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_rows_equal_transformers_on_ordinary_prompts(transformers_tokenizer: Any) -> None:
    prompts = ["", "a", "A Photo of a CAT's 4k, trending!!!", "naïve café 😀", "一只猫 カフェ", "word " * 100]
    expected = transformers_tokenizer(
        prompts, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
    )
    with pytest.warns(UserWarning, match="has 100 tokens"):
        rows = TOKENIZER(prompts)
    assert torch.equal(rows, expected["input_ids"])


@pytest.mark.parametrize(
    ("text", "repaired"),
    [
        ("rock &amp; roll", "rock & roll"),
        ("“curly”", '"curly"'),
        ("ＦＵＬＬ", "full"),
        ("ﬁne", "fine"),
        ("schÃ¶n", "schön"),
    ],
)
def test_transformers_differs_where_text_needs_repair(
    transformers_tokenizer: Any, text: str, repaired: str
) -> None:
    ids = TOKENIZER.encode(text)
    assert ids == TOKENIZER.encode(repaired) == transformers_ids(transformers_tokenizer, repaired)
    assert ids != transformers_ids(transformers_tokenizer, text)


def test_transformers_agrees_on_cleaned_text_in_every_script(transformers_tokenizer: Any) -> None:
    """Outside the differences that the tokenizer's docstring lists."""
    excluded = ("of_text", "<|", "ſ", "\u0345")
    texts = [
        text
        for text in map(clean, corpus())
        if clean(text) == text
        and not any(part in text for part in excluded)
        and not any(unicodedata.category(character) == "Cn" for character in text)
    ]
    assert len(texts) >= 2000
    expected = transformers_tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert [text for text, ids in zip(texts, expected) if TOKENIZER.encode(text) != ids] == []


@pytest.mark.parametrize("text", ["'ſ", "a\u0345"])
def test_transformers_differs_on_two_rare_characters(
    reference: Any, transformers_tokenizer: Any, text: str
) -> None:
    assert TOKENIZER.encode(text) == reference.encode(text) != transformers_ids(transformers_tokenizer, text)


def test_transformers_differs_on_open_clips_special_tokens(transformers_tokenizer: Any) -> None:
    assert TOKENIZER.encode("a <end_of_text> b") == [320, END_OF_TEXT, 321]
    assert transformers_ids(transformers_tokenizer, "a <|endoftext|> b") == [320, END_OF_TEXT, 321]
    assert TOKENIZER.encode("a <|endoftext|> b") == [320, END_OF_TEXT, 321]
    assert END_OF_TEXT not in transformers_ids(transformers_tokenizer, "a <end_of_text> b")


# ---- stages ---------------------------------------------------------------------------------------


def clean_without_short_cut(text: str) -> str:
    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return " ".join(text.split()).lower()


@many
@given(st.one_of(st.text(st.characters(max_codepoint=0x7F)), st.lists(PIECES, max_size=8).map("".join)))
def test_the_short_cut_in_clean_changes_nothing(text: str) -> None:
    assert clean(text) == clean_without_short_cut(text)


def test_the_short_cut_in_clean_changes_no_pair_of_ascii_characters() -> None:
    ascii_characters = [chr(code) for code in range(128)]
    for first in ascii_characters:
        text = " ".join(f"x{first}{second}y" for second in ascii_characters if (first + second).isprintable())
        assert clean(text) == clean_without_short_cut(text)
        assert clean(first) == clean_without_short_cut(first)


def test_split_loses_only_whitespace_and_one_character() -> None:
    visible = [chr(code) for code in range(0x110000) if not chr(code).isspace()]
    assert split(" ".join(visible)) == [character for character in visible if character != "\u0345"]


@many
@given(st.text(ANY_CHARACTER))
def test_split_keeps_all_else_in_order(text: str) -> None:
    cleaned = clean(text)
    assert "".join(split(cleaned)) == cleaned.replace(" ", "").replace("\u0345", "")


def test_merges_are_in_an_order_that_a_heap_may_follow() -> None:
    """A merge's parts are older than itself, and no two merges make the same token."""
    merges = bpe.tables().merges
    assert all(max(pair) < merged for pair, merged in merges.items())
    tokens = vocabulary()
    assert len(set(tokens)) == len(tokens)


def test_ids_that_are_published_everywhere() -> None:
    assert TOKENIZER.encode("a photo of a cat") == [320, 1125, 539, 320, 2368]
    assert merge("cat") == (2368,)


@pytest.mark.timeout(60)
def test_a_word_of_a_hundred_thousand_characters() -> None:
    """Takes a second; an algorithm that looks through the word once for each merge takes many minutes."""
    rng = random.Random(0)
    word = "".join(chr(rng.randrange(0x4E00, 0x9FA5)) for _ in range(100_000))
    assert TOKENIZER.decode(TOKENIZER.encode(word)) == word


def test_the_cache_of_words_is_bounded() -> None:
    bpe.forget_words()
    TOKENIZER.encode("x" * (bpe.CACHED_LENGTH + 1))
    assert bpe._cached_merge.cache_info().currsize == 0
    TOKENIZER.encode(" ".join(f"{a}{b}{c}" for a in "abcdefghij" for b in "klmnopqrst" for c in "uvwxyz"))
    info = bpe._cached_merge.cache_info()
    assert info.currsize == 600
    assert info.maxsize == bpe.CACHED_WORDS
