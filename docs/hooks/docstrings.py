"""Docstrings as Markdown, and the extension of griffe that makes them so.

The package's docstrings are plain text: formulas are indented, `name: what it is` describes an argument, and
shapes such as (B, C, h, w) stand in the text. Here arguments become a list; shapes and columns become code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import griffe

_ARGUMENT = re.compile(r"(?P<names>\*{0,2}[A-Za-z_]\w*(?:, \*{0,2}[A-Za-z_]\w*)*): (?P<text>.*)")
_SHAPE = re.compile(r"\((?=(?:[A-Z]'?|\d+)[,* ])[\w'*/+… .]{1,24}(?:,(?: [\w'*/+… .]{1,24})?)+\)")
_CODE = re.compile(r"(`[^`]+`)")
_COLUMNS = re.compile(r"\S {3,}\S")


def as_markdown(text: str, known: Iterable[str] = ()) -> str:
    """A docstring as Markdown. known: the names that may begin the description of an argument."""
    blocks = re.split(r"\n\s*\n", text)
    names = set(known)
    return "\n\n".join(_block(block.rstrip().split("\n"), names) for block in blocks if block.strip())


def _block(lines: list[str], known: set[str]) -> str:
    if all(line.startswith("    ") for line in lines):
        return "\n".join(lines)  # a formula or an example, which Markdown takes as code
    if sum(bool(_COLUMNS.search(line)) for line in lines) > 1:
        return "\n".join(f"    {line}" for line in lines)
    paragraphs: list[str] = []
    arguments = ended = False
    for line in _split(lines, known):
        match = _ARGUMENT.match(line)
        if match is not None and _known(match, known):
            names = ", ".join(f"`{name}`" for name in match["names"].split(", "))
            paragraphs.append(f"- {names}: {_inline(match['text'])}")
            arguments = True
        elif arguments and line.startswith("    ") and paragraphs:
            paragraphs[-1] += f"\n    {_inline(line.strip())}"
        elif not paragraphs or (arguments and ended and line[:1].isupper()):
            paragraphs.append(_inline(line.strip()))
            arguments = False
        else:
            paragraphs[-1] += f"\n{'    ' * arguments}{_inline(line.strip())}"
        ended = line.endswith((".", ":", ")"))
    written, was_list = "", False
    for paragraph in paragraphs:
        is_list = paragraph.startswith("- ")
        written += ("\n" if is_list and was_list else "\n\n") + paragraph
        was_list = is_list
    return written.strip()


def _known(match: re.Match[str], known: set[str]) -> bool:
    return {name.lstrip("*") for name in match["names"].split(", ")} <= known


def _split(lines: list[str], known: set[str]) -> Iterator[str]:
    """The lines, with a new one where the description of a second argument begins within a line."""
    for line in lines:
        rest, start = line, 0
        while (at := rest.find(". ", start)) >= 0:
            match = _ARGUMENT.match(rest[at + 2 :])
            start = at + 2
            if match is not None and _known(match, known):
                yield rest[: at + 1]
                rest, start = rest[at + 2 :], 0
        yield rest


def _inline(line: str) -> str:
    parts = _CODE.split(line)
    return "".join(part if i % 2 else _plain(part) for i, part in enumerate(parts))


def _plain(text: str) -> str:
    """Text whose signs mean nothing to Markdown, and whose shapes are code."""
    pieces, last = [], 0
    for match in _SHAPE.finditer(text):
        pieces += [_escaped(text[last : match.start()]), f"`{match[0]}`"]
        last = match.end()
    return "".join([*pieces, _escaped(text[last:])])


def _escaped(text: str) -> str:
    text = re.sub(r"([*_\[\]])", r"\\\1", text)
    return text.replace("<", "&lt;")


class Plain(griffe.Extension):
    """Turns every docstring of a package into Markdown when it has been read."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        for one in _objects(pkg):
            if one.docstring is not None:
                one.docstring.value = as_markdown(one.docstring.value, _names(one))


def _objects(parent: griffe.Object) -> Iterator[griffe.Object]:
    yield parent
    for member in parent.members.values():
        if isinstance(member, griffe.Object):
            yield from _objects(member)


def _names(one: griffe.Object) -> Iterator[str]:
    """Arguments of a function; fields, and arguments of `__init__`, of a class."""
    if isinstance(one, griffe.Function):
        yield from (parameter.name.lstrip("*") for parameter in one.parameters)
    if isinstance(one, griffe.Class):
        yield from one.members
        init = one.members.get("__init__")
        if isinstance(init, griffe.Function):
            yield from _names(init)
