"""Prompts that change during a run, in the syntax of A1111's web UI ("prompt editing").

    [a:b:when]   a up to and including step `when`, then b
    [b:when]     nothing, then b
    [a::when]    a, then nothing
    [a|b|c]      a, b and c in turn, one at each step

`when` with a dot is a fraction of the steps, without a dot it is a step, counted from 1. All of these may be
nested. Round and square brackets, such as those of weights, must be balanced within them; a backslash takes
the meaning from the next character. What does not fit stays text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ldm_core.prompts.limits import check_nesting, checked

MAX_ALL_LETTERS = 2**24  # of all texts of a schedule

_TOKEN = re.compile(r"(?:[^\\\[\]():|]|\\.)+|[\[\]():|]")
_WHEN = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_OPENING = {")": "(", "]": "["}


@dataclass
class _Alternation:
    options: list[list[Any]]

    def at(self, step: int) -> list[Any]:
        return self.options[(step - 1) % len(self.options)]


@dataclass
class _Change:
    before: list[Any]
    after: list[Any]
    when: int

    def at(self, step: int) -> list[Any]:
        return self.before if step <= self.when else self.after


@dataclass
class _Group:
    """A bracket that is still open: its fields, and the ":" and "|" between them."""

    opening: str
    fields: list[list[Any]] = field(default_factory=lambda: [[]])
    separators: str = ""

    def parts(self) -> list[Any]:
        """The content with its separators, as a node."""
        parts: list[Any] = [self.fields[0]]
        for separator, content in zip(self.separators, self.fields[1:], strict=True):
            parts += [separator, content]
        return parts


def schedule(text: str, steps: int, first_pass: int | None = None) -> list[tuple[int, str]]:
    """The texts of a run in order, each with the last step, 1..steps, at which it holds.

    first_pass: for the second of two passes, the number of steps of the first: fractions of the second pass
        are then 1.0 to 2.0, and its steps begin at first_pass + 1.

    Text with an unpaired "|", or with a backslash at the end of a line, is not scheduled at all. Raises
    ValueError for text that is no str, longer than MAX_LETTERS or nested deeper than MAX_NESTING, for steps
    below 1, and for texts of more than MAX_ALL_LETTERS letters together.
    """
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be a positive int, not {steps!r:.40}")
    parsed = _Parser(steps, first_pass).parse(checked(text))
    if parsed is None:
        return [(steps, text)]
    nodes, ends = parsed
    if len(ends) * len(text) > MAX_ALL_LETTERS:
        raise ValueError(
            f"a prompt of {len(text):,} letters that changes {len(ends):,} times is too long; expected at "
            f"most {MAX_ALL_LETTERS:,} letters in all"
        )
    return [(end, "".join(_text(nodes, end))) for end in sorted(ends)]


def _text(nodes: list[Any], step: int) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, str):
            yield node
        else:
            yield from _text(node if isinstance(node, list) else node.at(step), step)


class _Parser:
    """One pass over a prompt: `ends` collects the last steps of its texts."""

    def __init__(self, steps: int, first_pass: int | None) -> None:
        self.steps, self.first_pass = steps, first_pass
        self.ends = {steps}

    def parse(self, text: str) -> tuple[list[Any], set[int]] | None:
        """The nodes and the last steps, or None if the text does not fit the grammar."""
        top: list[Any] = []
        groups: list[_Group] = []
        position = 0
        for token in _TOKEN.finditer(text):
            if token.start() != position:
                return None
            position, found = token.end(), token.group()
            inner = groups[-1].fields[-1] if groups else top
            if found in "([":
                groups.append(_Group(found))
                check_nesting(len(groups))
            elif found in ":|" and groups:
                groups[-1].separators += found
                groups[-1].fields.append([])
            elif found == "|":
                return None
            elif found in _OPENING:
                closed = self._close(groups[-1], found) if groups else None
                if closed is not None:
                    groups.pop()
                    (groups[-1].fields[-1] if groups else top).append(closed)
                elif not _dissolve(groups, top):
                    return None
                else:
                    top.append(found)
            else:
                inner.append(found)
        if position != len(text) or not _dissolve(groups, top):
            return None
        return top, self.ends

    def _close(self, group: _Group, closing: str) -> Any:
        """The node of a group that ends here, or None if it does not fit the grammar."""
        if group.opening != _OPENING[closing]:
            return None
        colons, bars = group.separators.count(":"), group.separators.count("|")
        if closing == "]" and bars and not colons:
            self.ends.update(range(1, self.steps + 1))
            return _Alternation(group.fields)
        if bars or colons > 2 - (closing == ")"):
            return None
        if closing == "]" and colons:
            when = self._when(group.fields[-1])
            if when is None:
                return None
            if when >= 1:
                self.ends.add(when)
            before = group.fields[0] if colons == 2 else []
            return _Change(before, group.fields[-2], when)
        return [group.opening, *group.parts(), closing]

    def _when(self, content: list[Any]) -> int | None:
        """The last step of the text before a change, at most `steps`; None if the content is no number."""
        number = content[0].strip() if len(content) == 1 and isinstance(content[0], str) else ""
        if not _WHEN.fullmatch(number):
            return None
        step = float(number)
        if "." in number:
            step = (step - (self.first_pass is not None)) * self.steps
        else:
            step -= self.first_pass or 0
        return int(max(0.0, min(step, self.steps)))


def _dissolve(groups: list[_Group], top: list[Any]) -> bool:
    """Move the content of groups that are no groups to the top. False if it cannot stand there."""
    for group in groups:
        if "|" in group.separators:
            return False
        top += [group.opening, *group.parts()]
    groups.clear()
    return True
