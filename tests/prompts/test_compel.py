"""Compel's syntax: a table of prompts, combinations, and what is refused."""

from __future__ import annotations

import pytest

from ldm_core.prompts import CompelPrompt, compel

PIECES: list[tuple[str, list[tuple[str, float]]]] = [
    ("", [("", 1.0)]),
    ("a cat", [("a cat", 1.0)]),
    ("cat+", [("cat", 1.1)]),
    ("a cat+", [("a", 1.0), ("cat", 1.1)]),
    ("cat++", [("cat", 1.2100000000000002)]),
    ("cat-", [("cat", 0.9)]),
    ("cat--", [("cat", 0.81)]),
    ("a well-known cat", [("a well-known cat", 1.0)]),
    ("hot-dog-", [("hot-dog", 0.9)]),
    ("a+b+", [("a+b", 1.1)]),
    ("c++d", [("c", 1.2100000000000002), ("d", 1.0)]),
    ("(red hat)1.3", [("red hat", 1.3)]),
    ("(red hat)+", [("red hat", 1.1)]),
    ('"red hat"+', [("red hat", 1.1)]),
    ('"red hat"1.5', [("red hat", 1.5)]),
    ("(red hat)", [("red hat", 1.0)]),
    ("a (red hat) b", [("a red hat b", 1.0)]),
    ("(a (b)1.2 c)0.5", [("a", 0.5), ("b", 0.6), ("c", 0.5)]),
    ("(a+ b)1.2", [("a", 1.32), ("b", 1.2)]),
    ("(x:1.2)", [("x:1.2", 1.0)]),
    ("a (cat", [("a (cat", 1.0)]),
    ("a cat)", [("a cat)", 1.0)]),
    ("(a)0", [("a", 0.0)]),
    ("(a)1.", [("a", 1.0)]),
    ("(a).attend(1.3)", [("a", 1.3)]),
    ("(a).attend(--)", [("a", 0.81)]),
    ("a\\+", [("a+", 1.0)]),
    ("\\(a\\)+", [("(a)", 1.1)]),
    ("++", [("++", 1.0)]),
    ("a +", [("a +", 1.0)]),
    ("cat.", [("cat.", 1.0)]),
    ("(a) 1.5", [("a 1.5", 1.0)]),
    ("(a)1.5 b", [("a", 1.5), ("b", 1.0)]),
    ("a, b", [("a, b", 1.0)]),
    ("a,b", [("a, b", 1.0)]),
    ("(a, b)+", [("a, b", 1.1)]),
    ('x ("a", "b").and()', [("x a , b .and()", 1.0)]),
    ('("a", b c).and()', [("a , b c .and()", 1.0)]),
    ("((a)1.2)1.5", [("a", 1.7999999999999998)]),
    ('"a', [('"a', 1.0)]),
    ('a"b"', [('a"b"', 1.0)]),
]

A, B = (("a", 1.0),), (("b", 1.0),)


@pytest.mark.parametrize(("text", "expected"), PIECES)
def test_weights(text: str, expected: list[tuple[str, float]]) -> None:
    assert compel(text) == CompelPrompt((tuple(expected),))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('("a", "b").and()', CompelPrompt((A, B), (1.0, 1.0))),
        ('("a","b").and(1, 0.5)', CompelPrompt((A, B), (1.0, 0.5))),
        ('("a", "b").add(1, 2)', CompelPrompt((A, B), (1.0, 2.0))),
        ('("a", "b").blend(0.7, 0.3)', CompelPrompt((A, B), (0.7, 0.3), "blend")),
        (' ( "a" , (b) ) .blend( 1, -.5 ) ', CompelPrompt((A, B), (1.0, -0.5), "blend")),
        ("(a, b).blend(1, 2)", CompelPrompt((A, B), (1.0, 2.0), "blend")),
        ('("a", "b").blend(1, 1, no_normalize)', CompelPrompt((A, B), (1.0, 1.0), "blend", normalize=False)),
        ('("a+ b", "b").blend(1, 1)', CompelPrompt(((("a", 1.1), *B), B), (1.0, 1.0), "blend")),
    ],
)
def test_combinations(text: str, expected: CompelPrompt) -> None:
    assert compel(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('("a", "b").blend(1)', "needs one number for each of its 2 prompts, got '1'"),
        ('("a", "b").blend()', "needs one number for each of its 2 prompts, got ''"),
        ('("a", "b").blend(1, x)', "needs one number for each of its 2 prompts, got '1, x'"),
        ('("a", "b").and(1, 1, no_normalize)', "needs one number for each of its 2 prompts"),
        ('("a", "b").blend(1, -1)', "must not add up to 0"),
        ("a cat.swap(dog)", "not supported"),
        ("(a cat).swap(dog)", "not supported"),
        (f"(a){'9' * 400}", "must be a finite number, not inf"),
        ("a" + "+" * 9000, "is too large"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compel(text)
