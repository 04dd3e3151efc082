r"""Weights of words in the syntax of A1111's web UI.

    (x)      x times 1.1            [x]      x divided by 1.1
    (x:1.3)  x times 1.3            \( \) \[ \] \\  the characters themselves
    BREAK    ends a chunk of 75 tokens

Brackets may be nested, and their factors multiply. A closing bracket without an opening one is text; an
opening one without a closing one reaches to the end. `[x:1.3]` is no weight. A backslash before any other
character is dropped.
"""

from __future__ import annotations

import re

from ldm_core.prompts.limits import check_nesting, check_weight, checked, separated

BREAK = ("BREAK", -1.0)  # an entry of `weights` that ends a chunk

ROUND, SQUARE = 1.1, 1 / 1.1

# Each match is found in time linear in its length: no part can be split in two ways.
_TOKEN = re.compile(
    r"""
    (?P<escaped>\\[()\[\]\\]?)
  | (?P<bracket>[()\[\]])
  | :\s*(?P<weight>[+-]?(?:\d+(?:\.\d*)?|\.\d+))\s*\)
  | [^\\()\[\]:]+
  | :
    """,
    re.VERBOSE,
)


class _Piece:
    """A text with the product of the factors around it. Without one, a word BREAK."""

    def __init__(self, text: str, weight: float | None = 1.0) -> None:
        self.text, self.weight = text, weight


def weights(text: str, strict: bool = False) -> list[tuple[str, float]]:
    """The pieces of a prompt with their weights; neighbours of one weight are joined.

    The word BREAK, in capitals, is the entry `BREAK`, ("BREAK", -1.0), without the spaces around it.
    strict: within brackets, the weight of that entry is multiplied too, as in the web UI, which then no
    longer recognises it.

    Raises ValueError for text that is no str, longer than MAX_LETTERS or nested deeper than MAX_NESTING, and
    for weights that are not finite. Takes time in proportion to the length.
    """
    pieces: list[_Piece] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}  # the numbers of the first pieces within

    def multiply(first: int, factor: float) -> None:
        for piece in pieces[first:]:
            if piece.weight is not None:
                piece.weight *= factor

    for token in _TOKEN.finditer(checked(text)):
        found = token.group()
        if token["escaped"]:
            pieces.append(_Piece(found[1:]))
        elif found in opened:
            opened[found].append(len(pieces))
            check_nesting(len(opened["("]) + len(opened["["]))
        elif token["weight"] and opened["("]:
            multiply(opened["("].pop(), float(token["weight"]))
        elif found == ")" and opened["("]:
            multiply(opened["("].pop(), ROUND)
        elif found == "]" and opened["["]:
            multiply(opened["["].pop(), SQUARE)
        else:
            pieces += _with_breaks(found, strict)
    for first in opened["("]:
        multiply(first, ROUND)
    for first in opened["["]:
        multiply(first, SQUARE)
    return _joined(pieces)


def _with_breaks(text: str, strict: bool) -> list[_Piece]:
    """The parts of a text and the words BREAK between them."""
    parts = separated(text, BREAK[0])
    pieces = []
    for i, part in enumerate(parts):
        if i > 0:
            pieces.append(_Piece(*BREAK) if strict else _Piece(BREAK[0], None))
            part = part.lstrip()
        pieces.append(_Piece(part if i == len(parts) - 1 else part.rstrip()))
    return pieces


def _joined(pieces: list[_Piece]) -> list[tuple[str, float]]:
    """The pieces as entries, where neighbours of one weight are joined."""
    entries: list[tuple[list[str], float | None]] = []
    for piece in pieces:
        if piece.weight is not None:
            check_weight(piece.weight, piece.text)
        if entries and piece.weight is not None and entries[-1][1] == piece.weight:
            entries[-1][0].append(piece.text)
        else:
            entries.append(([piece.text], piece.weight))
    return [("".join(texts), BREAK[1] if weight is None else weight) for texts, weight in entries] or [
        ("", 1.0)
    ]
