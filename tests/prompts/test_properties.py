"""Properties of the parsers: errors, round trips, and work in proportion to the length."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm_core import prompts
from ldm_core.prompts.limits import MAX_LETTERS, MAX_NESTING

SYNTAX = [
    "(",
    ")",
    "[",
    "]",
    ":",
    "|",
    "\\",
    '"',
    "+",
    "-",
    ",",
    "BREAK",
    "AND",
    ":1.2)",
    ":3]",
    ":.5]",
    " ",
    "\n",
]
PARTS = st.sampled_from([*SYNTAX, "a", "ß", ").blend(", ").and(", "9" * 400]) | st.text(max_size=3)
TEXTS = st.lists(PARTS).map("".join)
WORDS = st.text(max_size=12).filter(lambda text: "BREAK" not in text)

PARSERS: dict[str, Callable[[str], Any]] = {
    "weights": prompts.weights,
    "strict": lambda text: prompts.weights(text, strict=True),
    "schedule": lambda text: prompts.schedule(text, 7),
    "alternatives": prompts.alternatives,
    "compel": prompts.compel,
}


def escaped(text: str) -> str:
    return re.sub(r"([\\()\[\]])", r"\\\1", text)


@pytest.mark.parametrize("name", PARSERS)
@given(TEXTS)
def test_any_text_gives_a_result_or_a_value_error(name: str, text: str) -> None:
    with contextlib.suppress(ValueError):
        assert PARSERS[name](text)


@given(WORDS)
def test_escaped_text_is_text(text: str) -> None:
    assert prompts.weights(escaped(text)) == [(text, 1.0)]


@given(st.lists(st.tuples(WORDS, st.floats(-4, 4, allow_subnormal=False).map(lambda w: round(w, 3)))))
def test_weights_that_are_written_are_read(pieces: list[tuple[str, float]]) -> None:
    """Neighbours of one weight are joined, without change of the text."""
    text = "".join(f"({escaped(part)}:{weight:f})" for part, weight in pieces)
    found = prompts.weights(text)
    letters = [(letter, weight) for part, weight in pieces for letter in part]
    assert [(letter, weight) for part, weight in found for letter in part] == letters
    assert all(a[1] != b[1] for a, b in pairwise(found))


@given(TEXTS, st.integers(1, 12))
def test_a_schedule_covers_the_run(text: str, steps: int) -> None:
    try:
        found = prompts.schedule(text, steps)
    except ValueError:
        return
    ends = [end for end, _ in found]
    assert ends == sorted(set(ends))
    assert 1 <= ends[0] <= ends[-1] == steps


@given(st.text(max_size=20).filter(lambda text: not set(text) & set("\\[]()|")), st.integers(1, 50))
def test_text_without_brackets_has_no_schedule(text: str, steps: int) -> None:
    assert prompts.schedule(text, steps) == [(steps, text)]


@given(st.lists(st.text("ab ,.", min_size=1, max_size=8).map(str.strip), min_size=1))
def test_alternatives_that_are_written_are_read(parts: list[str]) -> None:
    found = prompts.alternatives(" AND ".join(f"{part} :{k}" for k, part in enumerate(parts)))
    assert [(part.strip(), weight) for part, weight in found] == [(p, float(k)) for k, p in enumerate(parts)]


ATTACKS = {
    "open": "(",
    "closed": ")",
    "pairs": "()",
    "words": "(a)",
    "nested": "(" * (MAX_NESTING - 1) + "a" + ")" * (MAX_NESTING - 1),
    "spaces": " ",
    "colons": ":",
    "digits": ":1",
    "number": "1",
    "dots": ":.",
    "backslashes": "\\",
    "plus": "a+",
    "minus": "-",
    "quotes": '"a',
    "fields": "[a:b:2]",
    "bars": "[a|b]",
    "breaks": " BREAK ",
    "and": "AND ",
    "commas": ",a",
}


def lines_run(function: Callable[[str], Any], text: str) -> int:
    """The number of lines of Python that a call runs; a ValueError ends it."""
    count = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function(text)
    except ValueError:
        pass
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("name", PARSERS)
def test_work_grows_in_proportion_to_the_length(name: str) -> None:
    """Twice the text takes at most 2.5 times the lines."""
    for attack in ATTACKS.values():
        text = attack * (400 // len(attack) + 1)
        once, twice = (lines_run(PARSERS[name], text * k) for k in (1, 2))
        assert twice <= 2.5 * once + 100, attack


@pytest.mark.one_in(4)
@pytest.mark.parametrize("name", PARSERS)
@pytest.mark.parametrize("letters", [" ", ":", "1", ":1", "1.", "+", "-a", "a+", "\\", "(a) ", "a BREAK "])
def test_regular_expressions_are_linear(name: str, letters: str) -> None:
    """They run no lines of Python. A quadratic one takes a minute, and these at most 0.1 s."""
    text = f"(a:{letters * MAX_LETTERS}"[:MAX_LETTERS]
    start = time.process_time()
    with contextlib.suppress(ValueError):
        PARSERS[name](text)
    assert time.process_time() - start < 2


@pytest.mark.parametrize("name", PARSERS)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (7, "expected a prompt as a str, got int"),
        (None, "expected a prompt as a str, got NoneType"),
        ("a" * (MAX_LETTERS + 1), "a prompt must have at most 32,768 letters, not 32,769"),
    ],
)
def test_bad_arguments(name: str, text: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PARSERS[name](text)


@pytest.mark.parametrize("name", ["weights", "schedule", "compel"])
def test_nesting_has_a_limit(name: str) -> None:
    def nested(depth: int) -> str:
        return "(" * depth + "a" + ")" * depth

    PARSERS[name](nested(MAX_NESTING))
    with pytest.raises(ValueError, match="at most 100 open brackets within each other"):
        PARSERS[name](nested(MAX_NESTING + 1))


@pytest.mark.parametrize("text", [f"(a:{'9' * 400})", f"(((a:1{'0' * 200}):1{'0' * 200}))"])
def test_weights_that_are_not_finite(text: str) -> None:
    with pytest.raises(ValueError, match="must be a finite number, not inf"):
        prompts.weights(text)


@pytest.mark.parametrize("steps", [0, -1, 1.5, "3", None])
def test_bad_steps(steps: Any) -> None:
    with pytest.raises(ValueError, match="steps must be a positive int"):
        prompts.schedule("a", steps)


def test_texts_that_are_too_long_together() -> None:
    with pytest.raises(ValueError, match=r"a prompt of 30,005 letters that changes 1,000 times is too long"):
        prompts.schedule(f"[a|b]{'a' * 30_000}", 1000)
