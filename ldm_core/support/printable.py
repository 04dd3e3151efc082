"""Untrusted text made safe to print: on one line and without control codes for the terminal."""

from __future__ import annotations

import reprlib
import unicodedata
from collections.abc import Sequence

SHOWN_LETTERS = 80
SHOWN_ITEMS = 16

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxlong = _REPR.maxother = SHOWN_LETTERS
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = _REPR.maxset = SHOWN_ITEMS


def printable(text: str, keep: str = "") -> str:
    """The text with characters that are not printable escaped, as in `\\x1b`, except for those in `keep`.

    Escapes control characters, line separators, marks that change the writing direction or have no width, and
    lone surrogates. Keeps all spaces.
    """
    return "".join(
        char
        if char.isprintable() or char in keep or unicodedata.category(char) == "Zs"
        else ascii(char)[1:-1]
        for char in text
    )


def few(names: Sequence[str], count: int = 5, separator: str = ", ") -> str:
    """The first `count` names, and the total if there are more: "a, b, … (7 in all)"."""
    more = [f"… ({len(names)} in all)"] if len(names) > count else []
    return separator.join([*names[:count], *more])


def shown_error(error: BaseException) -> str:
    """The first line of another library's error, shortened, since it may quote any amount of a file."""
    lines = (str(error) or type(error).__name__).splitlines()
    return printable(lines[0][: 4 * SHOWN_LETTERS])


def shown(value: object) -> str:
    """The shortened `repr` of any value in one printable line, for error messages."""
    try:
        text = printable(" ".join(line.strip() for line in _REPR.repr(value).splitlines()))
    except (ValueError, RecursionError):  # an int with more digits than Python converts
        return f"a {type(value).__name__} that is too long to show"
    return text if len(text) <= 4 * SHOWN_LETTERS else text[: 4 * SHOWN_LETTERS] + "…"
