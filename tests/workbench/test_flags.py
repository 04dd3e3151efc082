"""The grammar of a prompt's flags."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm_core.workbench import Flags, parse_flags

READ: list[tuple[str, dict[str, Any]]] = [
    ("a cat", {"text": "a cat"}),
    ("", {}),
    ("  a \n cat  ", {"text": "a cat"}),
    (
        "a cat --ar 3:2 --no dog --seed 7 --chaos 20 --tile --iw 0.5",
        {"text": "a cat", "ar": (3, 2), "no": "dog", "seed": 7, "chaos": 20, "tile": True, "iw": 0.5},
    ),
    ("a --tile --ar 1:1", {"text": "a", "tile": True, "ar": (1, 1)}),
    ("--seed 1", {"seed": 1}),
    ("a cat --no dog, black cat --seed 1", {"text": "a cat", "no": "dog, black cat", "seed": 1}),
    ("a --no dog --no cat", {"text": "a", "no": "dog, cat"}),
    ("a --aspect 16:9 --c 100", {"text": "a", "ar": (16, 9), "chaos": 100}),
    ("a --AR 16:9", {"text": "a", "ar": (16, 9)}),
    ("a —ar 2:1 —tile", {"text": "a", "ar": (2, 1), "tile": True}),
    ("a\t--seed\t5\n--tile", {"text": "a", "seed": 5, "tile": True}),
    ("well-known, co--op, 3--4, - --, — and --5", {"text": "well-known, co--op, 3--4, - --, — and --5"}),
    ("a --iw 2", {"text": "a", "iw": 2.0}),
    ("a --iw .25", {"text": "a", "iw": 0.25}),
    ("a --chaos 0 --seed 0", {"text": "a", "seed": 0}),
    ("a --seed 9223372036854775807", {"text": "a", "seed": 2**63 - 1}),
    ("a (cat:1.2) [b] {c} <lora:x:1>", {"text": "a (cat:1.2) [b] {c} <lora:x:1>"}),
]
REFUSED = {
    "a cat --ar 0:1": r"--ar takes two positive numbers, such as 3:2, not 0:1",
    "a --ar 3": r"--ar takes two whole numbers, such as 3:2, not '3'",
    "a --ar 3:2:1": "--ar takes two whole numbers",
    "a --ar -3:2": "--ar takes two whole numbers",
    "a --ar 1.5:1": "--ar takes two whole numbers",
    "a --ar ٣:٢": "--ar takes two whole numbers",
    "a --ar": "--ar takes two whole numbers, such as 3:2, not ''",
    "a --ar 99:1": "--ar must be between 1:16 and 16:1, not 99:1",
    "a --stylize 100": "unknown flag --stylize; expected --ar, --no, --seed, --chaos, --tile, --iw",
    "a --Tiles": "unknown flag --Tiles",
    "a --seed x": "--seed takes one whole number, not 'x'",
    "a --seed -1": "--seed takes one whole number, not '-1'",
    "a --seed 7 b": "--seed takes one whole number, not '7 b'",
    "a --seed 9223372036854775808": r"--seed must be a whole number in 0\.\.2\*\*63-1",
    "a --seed 1 --seed 2": "--seed is given twice",
    "a --ar 1:1 --aspect 1:1": "--ar is given twice",
    "a --tile --tile": "--tile is given twice",
    "a --chaos 101": r"--chaos must be a whole number in 0\.\.100, not 101",
    "a --chaos 0.5": "--chaos takes one whole number",
    "a --tile yes": "--tile takes no value, got 'yes'; words come before the flags",
    "a --no": "--no takes words",
    "a --iw 3": r"--iw must be a number in 0\.\.2, not 3.0",
    "a --iw nan": "--iw takes one number",
    "a --iw inf": "--iw takes one number",
    "x" * 40_000: "at most 32,768 letters, not 40,000",
}


@pytest.mark.parametrize(("prompt", "expected"), READ)
def test_flags_are_read(prompt: str, expected: dict[str, Any]) -> None:
    assert parse_flags(prompt) == Flags(**expected)


@pytest.mark.parametrize(("prompt", "message"), list(REFUSED.items()))
def test_bad_flags_are_refused_in_one_line(prompt: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        parse_flags(prompt)
    assert len(str(error.value).splitlines()) == 1
    assert str(error.value).isprintable()


words = st.text("ab-—:,.'猫\u202e07(", min_size=1, max_size=6).filter(
    lambda word: not word.startswith(("--", "—"))
)
texts = st.lists(words, max_size=4).map(" ".join)
whole_flags = st.builds(
    Flags,
    text=texts,
    ar=st.none() | st.tuples(st.integers(10, 160), st.integers(10, 160)),
    no=texts,
    seed=st.none() | st.integers(0, 2**63 - 1),
    chaos=st.integers(0, 100),
    tile=st.booleans(),
    iw=st.none() | st.floats(0, 2),
)


@given(whole_flags)
def test_what_is_written_reads_back(flags: Flags) -> None:
    assert parse_flags(str(flags)) == flags


@given(st.text() | st.text("ab-— :0123456789\n\ttilenoseedarw"))
def test_any_text_is_read_or_refused(prompt: str) -> None:
    try:
        flags = parse_flags(prompt)
    except ValueError:
        return
    assert parse_flags(str(flags)) == flags
