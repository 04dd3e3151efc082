"""The tokenizer against open_clip's, which is OpenAI's own, and against what its documentation promises."""

from __future__ import annotations

import copy
import html
import importlib.util
import itertools
import json
import pickle
import random
import subprocess
import sys
import unicodedata
import warnings
from collections import defaultdict
from pathlib import Path
from types import ModuleType
from typing import Any

import ftfy
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from ldm_core import tokenizer as module
from ldm_core.tokenizer import END_OF_TEXT, START_OF_TEXT, CLIPTokenizer, clean, merge, split, vocabulary

TOKENIZER = CLIPTokenizer()
many = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])

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


# ---- text in every script -------------------------------------------------------------------------


def characters_by_script() -> dict[str, list[str]]:
    """All named characters, by the first word of their name: LATIN, GREEK, TAMIL, CJK, HANGUL, MUSICAL …"""
    groups: dict[str, list[str]] = defaultdict(list)
    for code in range(0x110000):
        name = unicodedata.name(chr(code), "")
        if name:
            groups[name.replace("-", " ").split()[0]].append(chr(code))
    return groups


SCRIPTS = characters_by_script()
NUMERALS = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)).startswith("N")]

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
    "<start_of_text> <END_OF_TEXT>! <|startoftext|> <|endoftext|> a<end_of_text>b !<end_of_text> <end_of",
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
    for name in sorted(SCRIPTS):
        script = SCRIPTS[name]
        for count in (2, 5) if len(script) < 20 else (1, 4, 8, 16, 40):
            mixed = rng.choices(script, k=count) + rng.choices([" ", ".", "a", "7", "\u0301"], k=count // 2)
            rng.shuffle(mixed)
            texts.append("".join(mixed))
    texts += ["".join(rng.choices(NUMERALS, k=12)) for _ in range(100)]
    texts += [
        " ".join(rng.choice(script) for script in rng.sample(list(SCRIPTS.values()), 10)) for _ in range(200)
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


ANY_CHARACTER = st.characters(exclude_categories=())  # lone surrogates and unassigned code points included
PIECES = st.sampled_from(
    [
        *(
            "<start_of_text>",
            "<end_of_text>",
            "<END_OF_TEXT>",
            "<ſtart_of_text>",
            "<|endoftext|>",
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
SCRIPT_TEXT = st.sampled_from(sorted(SCRIPTS)).flatmap(
    lambda name: st.text(st.sampled_from([*SCRIPTS[name], " ", "'", "1"]), max_size=30)
)


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


@pytest.fixture(scope="module")
def transformers_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("clip")
    tokens = vocabulary()
    tokens[-2:] = ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: k for k, token in enumerate(tokens)}))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in module.read_merges())]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    return transformers.CLIPTokenizer.from_pretrained(folder, model_max_length=77)


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


def test_transformers_differs_on_special_tokens_written_out(transformers_tokenizer: Any) -> None:
    assert TOKENIZER.encode("a <end_of_text> b") == [320, END_OF_TEXT, 321]
    assert transformers_ids(transformers_tokenizer, "a <|endoftext|> b") == [320, END_OF_TEXT, 321]
    assert END_OF_TEXT not in TOKENIZER.encode("a <|endoftext|> b")
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
    merges = module._tables().merges
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
    module.forget_words()
    TOKENIZER.encode("x" * (module.CACHED_LENGTH + 1))
    assert module._cached_merge.cache_info().currsize == 0
    TOKENIZER.encode(" ".join(f"{a}{b}{c}" for a in "abcdefghij" for b in "klmnopqrst" for c in "uvwxyz"))
    info = module._cached_merge.cache_info()
    assert info.currsize == 600
    assert info.maxsize == module.CACHED_WORDS


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
    expected = "".join(word for word in split(clean(text)) if word not in module.SPECIAL_TOKENS)
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
        ((("a", (FIRST,)), ("b", (FIRST,))), "'b' needs ids of its own from 49408 on"),
        ((("a", (FIRST, FIRST)),), "'a' needs ids of its own"),
        ((("a", (END_OF_TEXT,)),), "from 49408 on, not"),
        ((("a", (49408.0,)),), "needs ids"),
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


# ---- the object -----------------------------------------------------------------------------------


def test_a_tokenizer_is_a_value() -> None:
    tokenizer = CLIPTokenizer(pad_token_id=0)
    assert pickle.loads(pickle.dumps(tokenizer)) == copy.deepcopy(tokenizer) == tokenizer
    assert tokenizer != CLIPTokenizer()


def test_encode_needs_no_torch() -> None:
    code = (
        "import importlib.util, sys\n"
        "sys.modules['torch'] = None\n"
        f"spec = importlib.util.spec_from_file_location('tokenizer', {str(module.__file__)!r})\n"
        "sys.modules['tokenizer'] = tokenizer = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(tokenizer)\n"
        "assert not {'ftfy', 'regex'} & set(sys.modules), 'imported before they are needed'\n"
        "print(tokenizer.CLIPTokenizer().encode('a cat'))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.stdout.strip(), result.stderr) == ("[320, 2368]", "")
