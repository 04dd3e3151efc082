"""The syntax of A1111's web UI: tables of prompts with their weights, texts by step, and alternatives."""

from __future__ import annotations

import pytest

from ldm_core import prompts

WEIGHTS: list[tuple[str, list[tuple[str, float]]]] = [
    ("", [("", 1.0)]),
    ("a cat", [("a cat", 1.0)]),
    ("a (cat)", [("a ", 1.0), ("cat", 1.1)]),
    ("a [cat]", [("a ", 1.0), ("cat", 0.9090909090909091)]),
    ("(a (b) c)", [("a ", 1.1), ("b", 1.2100000000000002), (" c", 1.1)]),
    ("[a [b] c]", [("a ", 0.9090909090909091), ("b", 0.8264462809917354), (" c", 0.9090909090909091)]),
    ("(a [b] c)", [("a ", 1.1), ("b", 1.0), (" c", 1.1)]),
    ("(cat:1.3)", [("cat", 1.3)]),
    ("a (red:1.5) cat", [("a ", 1.0), ("red", 1.5), (" cat", 1.0)]),
    ("((a:1.3))", [("a", 1.4300000000000002)]),
    ("(a (b:1.5):1.2)", [("a ", 1.2), ("b", 1.7999999999999998)]),
    ("(cat:.5)", [("cat", 0.5)]),
    ("(cat:2.)", [("cat", 2.0)]),
    ("(cat: 1.2 )", [("cat", 1.2)]),
    ("(cat:+1.2)", [("cat", 1.2)]),
    ("(cat:-0.5)", [("cat", -0.5)]),
    ("(cat:0)", [("cat", 0.0)]),
    ("[cat:1.3]", [("cat:1.3", 0.9090909090909091)]),
    ("\\(cat\\)", [("(cat)", 1.0)]),
    ("\\[cat\\]", [("[cat]", 1.0)]),
    ("a\\\\b", [("a\\b", 1.0)]),
    ("a\\b", [("ab", 1.0)]),
    ("\\", [("", 1.0)]),
    ("(a \\(b\\) c)", [("a (b) c", 1.1)]),
    ("a)", [("a)", 1.0)]),
    ("a]", [("a]", 1.0)]),
    ("(a", [("a", 1.1)]),
    ("((a", [("a", 1.2100000000000002)]),
    ("[a", [("a", 0.9090909090909091)]),
    ("(a [b", [("a ", 1.1), ("b", 1.0)]),
    ("a :1.3)", [("a :1.3)", 1.0)]),
    ("a: b", [("a: b", 1.0)]),
    ("(16:9)", [("16", 9.0)]),
    ("(a:b)", [("a:b", 1.1)]),
    ("(a:1.3", [("a:1.3", 1.1)]),
    ("(a)(b)", [("ab", 1.1)]),
    ("(a:1.2)(b:1.2)", [("ab", 1.2)]),
    ("([a])", [("a", 1.0)]),
    ("(a)) b", [("a", 1.1), (") b", 1.0)]),
    ("(a]b)", [("a]b", 1.1)]),
    ("[(a]b)", [("a", 1.0), ("b", 1.1)]),
    ("a BREAK b", [("a", 1.0), ("BREAK", -1.0), ("b", 1.0)]),
    ("BREAK", [("", 1.0), ("BREAK", -1.0), ("", 1.0)]),
    ("a BREAK", [("a", 1.0), ("BREAK", -1.0), ("", 1.0)]),
    ("BREAK a", [("", 1.0), ("BREAK", -1.0), ("a", 1.0)]),
    ("a BREAK BREAK b", [("a", 1.0), ("BREAK", -1.0), ("", 1.0), ("BREAK", -1.0), ("b", 1.0)]),
    ("aBREAK", [("aBREAK", 1.0)]),
    ("break", [("break", 1.0)]),
    ("(a) BREAK [b]", [("a", 1.1), ("", 1.0), ("BREAK", -1.0), ("", 1.0), ("b", 0.9090909090909091)]),
    ("(a:1.3) , (b:1.3)", [("a", 1.3), (" , ", 1.0), ("b", 1.3)]),
    ("()", [("", 1.0)]),
    ("(:1.3)", [("", 1.0)]),
    ("a\nb", [("a\nb", 1.0)]),
    ("(a:1.3)b", [("a", 1.3), ("b", 1.0)]),
    ("über (straße:1.1)", [("über ", 1.0), ("straße", 1.1)]),
    ("(a_(b):1.2)", [("a_", 1.2), ("b", 1.32)]),
    ("(a:1:1.2)", [("a:1", 1.2)]),
    ("a, (b, c:1.1), d", [("a, ", 1.0), ("b, c", 1.1), (", d", 1.0)]),
    ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
    ("((a) b:0.5) c", [("a", 0.55), (" b", 0.5), (" c", 1.0)]),
]

SCHEDULES: list[tuple[str, dict[int, str]]] = [
    ("", {10: ""}),
    ("a cat", {10: "a cat"}),
    ("[a:b:3]", {3: "a", 10: "b"}),
    ("x [a:b:3] y", {3: "x a y", 10: "x b y"}),
    ("[b:3]", {3: "", 10: "b"}),
    ("[a::3]", {3: "a", 10: ""}),
    ("[::3]", {3: "", 10: ""}),
    ("[a:b:0.5]", {5: "a", 10: "b"}),
    ("[a:b:.25]", {2: "a", 10: "b"}),
    ("[a:b:1]", {1: "a", 10: "b"}),
    ("[a:b:1.0]", {10: "a"}),
    ("[a:b:0]", {10: "b"}),
    ("[a:b:0.05]", {10: "b"}),
    ("[a:b:99]", {10: "a"}),
    ("[a:b:-2]", {10: "b"}),
    ("[a:b: 3 ]", {3: "a", 10: "b"}),
    ("[a:b:3.7]", {10: "a"}),
    ("[a:b:1e1]", {10: "a"}),
    ("[a:b:+3]", {3: "a", 10: "b"}),
    ("[a:b:x]", {10: "[a:b:x]"}),
    ("[a:b:c:3]", {10: "[a:b:c:3]"}),
    ("[a:b]", {10: "[a:b]"}),
    ("[a]", {10: "[a]"}),
    ("[a:b:3", {10: "[a:b:3"}),
    ("a:b:3]", {10: "a:b:3]"}),
    ("a | b", {10: "a | b"}),
    ("[a|b:c:0.5]", {10: "[a|b:c:0.5]"}),
    ("[a|b] | c", {10: "[a|b] | c"}),
    ("[(a:1.1):(b:1.2):3]", {3: "(a:1.1)", 10: "(b:1.2)"}),
    ("[[a:b:2]:c:6]", {2: "a", 6: "b", 10: "c"}),
    ("[a:[b:c:4]:2]", {2: "a", 4: "b", 10: "c"}),
    ("[a:b:2] and [c:d:4]", {2: "a and c", 4: "b and c", 10: "b and d"}),
    ("([a:b:2]:1.3)", {2: "(a:1.3)", 10: "(b:1.3)"}),
    ("((a:b:2]", {10: "((a:b:2]"}),
    ("(a [b:2]", {2: "(a ", 10: "(a b"}),
    ("a[b:2]c[d:4]e", {2: "ace", 4: "abce", 10: "abcde"}),
    ("\\[a:b:3\\]", {10: "\\[a:b:3\\]"}),
    ("[a\\:b:3]", {3: "", 10: "a\\:b"}),
    ("[a\\|b:3]", {3: "", 10: "a\\|b"}),
    ("[a:b:3\\", {10: "[a:b:3\\"}),
    ("a [b\\\n:3]", {10: "a [b\\\n:3]"}),
    ("[b:3])", {3: ")", 10: "b)"}),
    ("[(a:b:3]", {10: "[(a:b:3]"}),
    ("[a)b:3]", {10: "[a)b:3]"}),
    ("a (b:1.2) [c]", {10: "a (b:1.2) [c]"}),
    ("[a : b : 2] d", {2: "a  d", 10: " b  d"}),
    ("[ä:ö:5]", {5: "ä", 10: "ö"}),
    ("[[[b]]:2]", {2: "", 10: "[[b]]"}),
    ("[a:b:0.999]", {9: "a", 10: "b"}),
    ("[a:b:10]", {10: "a"}),
    ("[a:b:2][c:d:2]", {2: "ac", 10: "bd"}),
    ("[a:b:5.]", {10: "a"}),
]

ALTERNATIONS: list[tuple[str, list[str]]] = [
    ("[a|b]", ["a", "b", "a", "b"]),
    ("[a|b|c]", ["a", "b", "c", "a"]),
    ("[a|]", ["a", "", "a", ""]),
    ("[|a]", ["", "a", "", "a"]),
    ("[a||b]", ["a", "", "b", "a"]),
    ("[a|(b:1.2)]", ["a", "(b:1.2)", "a", "(b:1.2)"]),
    ("[[a|b]:c:2]", ["a", "b", "c", "c"]),
]

ALTERNATIVES: list[tuple[str, list[tuple[str, float]]]] = [
    ("a", [("a", 1.0)]),
    ("a AND b", [("a", 1.0), (" b", 1.0)]),
    ("a :1.2 AND b :0.5", [("a", 1.2), (" b", 0.5)]),
    ("a:1.2", [("a", 1.2)]),
    ("a AND", [("a", 1.0), ("", 1.0)]),
    ("AND", [("", 1.0), ("", 1.0)]),
    ("AND b", [("", 1.0), (" b", 1.0)]),
    ("a AND b AND c", [("a", 1.0), (" b", 1.0), (" c", 1.0)]),
    ("a ANDb", [("a ANDb", 1.0)]),
    ("aAND b", [("aAND b", 1.0)]),
    ("a and b", [("a and b", 1.0)]),
    ("time 12:30 AND x", [("time 12", 30.0), (" x", 1.0)]),
    ("a :-0.5 AND b", [("a", -0.5), (" b", 1.0)]),
    ("a : 2 ", [("a", 2.0)]),
    ("a :1.2.3", [("a :1.2.3", 1.0)]),
    ("a :.5", [("a", 0.5)]),
    ("a :2.", [("a", 2.0)]),
    ("a:1:2", [("a:1", 2.0)]),
    ("(a:1.2) AND b", [("(a:1.2)", 1.0), (" b", 1.0)]),
    (" a AND  b ", [(" a", 1.0), ("  b", 1.0)]),
    ("a,AND,b", [("a,", 1.0), (",b", 1.0)]),
    ("a\nAND\nb :2", [("a", 1.0), ("\nb", 2.0)]),
    ("a : x", [("a : x", 1.0)]),
    (":2", [("", 2.0)]),
    ("a :+1", [("a", 1.0)]),
]


@pytest.mark.parametrize(("text", "expected"), WEIGHTS)
def test_weights(text: str, expected: list[tuple[str, float]]) -> None:
    assert prompts.weights(text) == prompts.weights(text, strict=True) == expected


@pytest.mark.parametrize(
    ("text", "around", "strict"),
    [("(a BREAK b)", 1.1, -1.1), ("[a BREAK b]", 1 / 1.1, -1 / 1.1), ("(a BREAK b:-1)", -1.0, 1.0)],
)
def test_a_break_within_brackets_is_a_break_unless_strict(text: str, around: float, strict: float) -> None:
    before, after = ("a", around), ("b", around)
    assert prompts.weights(text) == [before, ("BREAK", -1.0), after]
    assert prompts.weights(text, strict=True) == [before, ("BREAK", strict), after]


@pytest.mark.parametrize(("text", "expected"), SCHEDULES)
def test_schedules_of_10_steps(text: str, expected: dict[int, str]) -> None:
    assert prompts.schedule(text, 10) == list(expected.items())


@pytest.mark.parametrize(("text", "expected"), ALTERNATIONS)
def test_alternations_of_4_steps(text: str, expected: list[str]) -> None:
    assert prompts.schedule(text, 4) == list(enumerate(expected, start=1))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a:b:.5]", {10: "b"}),  # in the first pass
        ("[a:b:1.5]", {5: "a", 10: "b"}),
        ("[a:b:1.0]", {10: "b"}),
        ("[a:b:2.0]", {10: "a"}),
        ("[a:b:24]", {4: "a", 10: "b"}),
        ("[a:b:20]", {10: "b"}),
        ("[a:b:40]", {10: "a"}),
    ],
)
def test_a_second_pass_of_10_steps_after_20(text: str, expected: dict[int, str]) -> None:
    assert prompts.schedule(text, 10, first_pass=20) == list(expected.items())


@pytest.mark.parametrize(("text", "expected"), ALTERNATIVES)
def test_alternatives(text: str, expected: list[tuple[str, float]]) -> None:
    assert prompts.alternatives(text) == expected
