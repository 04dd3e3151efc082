r"""Weights, blends and conjunctions in the syntax of Compel 2.

    word+  word--  (several words)1.3  "several words"++   weights: 1.1 for each plus, 0.9 for each minus
    ("a", "b").blend(0.7, 0.3)                             the weighted mean of the embeddings
    ("a", "b").and(1, 0.5)                                 contexts one after the other

Weights may be nested, and multiply. Brackets and quotes without a weight have no meaning, and `(x:1.2)` is
text. A backslash before one of ( ) " , . + - = makes it an ordinary character.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ldm_core.prompts.limits import check_nesting, check_weight, checked
from ldm_core.support.printable import shown

Pieces = tuple[tuple[str, float], ...]

PLUS, MINUS = 1.1, 0.9

_SYNTAX = r'()",.+\-='
# A word that a run of plus or minus may follow. The cases exclude each other, so matching is linear, and the
# lookahead with a reference to it takes the longest word or none: "well-known" has no weight.
_WORD = rf"(?:\\[{_SYNTAX}]|\\(?![{_SYNTAX}])|[+-](?![\s{_SYNTAX}]|$)|[^\s{_SYNTAX}\\])+"
_WEIGHTED_WORD = re.compile(rf"(?=(?P<word>{_WORD}))(?P=word)(?P<weight>\++|-+)")
_INNER_WORD = re.compile(rf"{_WORD}|\S")
_FREE_WORD = re.compile(r"\S+")
_NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)"
_WEIGHT = re.compile(rf"(?P<weight>\++|-+|{_NUMBER})|\.attend\(\s*(?P<attend>\++|-+|-?{_NUMBER})\s*\)")
_OPERATOR = re.compile(r"\s*\.(?P<name>and|add|blend)\((?P<options>[^()]*)\)\s*")
_OPTION = re.compile(rf"[+-]?{_NUMBER}")
_ESCAPED = re.compile(rf"\\([{_SYNTAX}])")


@dataclass(frozen=True)
class CompelPrompt:
    """The prompts of a text, each as pieces with weights, and how their embeddings are combined.

    operator: "and" for contexts one after the other, also for a single prompt, or "blend" for a weighted
        mean. weights: one per prompt. normalize: divide the weights of a blend by their sum.
    """

    prompts: tuple[Pieces, ...]
    weights: tuple[float, ...] = (1.0,)
    operator: str = "and"
    normalize: bool = True


def compel(text: str) -> CompelPrompt:
    """Parse a prompt. Brackets and quotes that do not close are text.

    Raises ValueError for text that is no str, longer than MAX_LETTERS or nested deeper than MAX_NESTING, for
    weights that are not finite or not one per prompt, and for `.swap()`, which needs control of the
    attention. Takes time in proportion to the length.
    """
    scanner = _Scanner(re.sub(r",(?=\S)", ", ", checked(text)))
    return scanner.combination() or CompelPrompt((scanner.prompt(0, len(scanner.text)),))


@dataclass
class _Piece:
    text: str
    weight: float
    start: int
    end: int


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.closing: dict[int, int] = {}  # the position of the end of each bracket and quote
        opened: list[int] = []
        quote = None
        for token in re.finditer(r'\\.|[()"]', text, re.DOTALL):
            if token.group() == "(":
                opened.append(token.start())
            elif token.group() == ")" and opened:
                self.closing[opened.pop()] = token.start()
            elif token.group() == '"':
                if quote is not None:
                    self.closing[quote] = token.start()
                quote = token.start()

    def combination(self) -> CompelPrompt | None:
        """The text as a blend or conjunction, or None if it is neither."""
        start = len(self.text) - len(self.text.lstrip())
        end = self.closing.get(start) if self.text[start : start + 1] == "(" else None
        found = None if end is None else _OPERATOR.fullmatch(self.text, end + 1)
        if end is None or found is None:
            return None
        items = self._items(start + 1, end)
        if items is None:
            return None
        given = found["options"].strip()
        options = [option.strip() for option in given.split(",")] if given else []
        blend = found["name"] == "blend"
        normalize = not (blend and options[-1:] == ["no_normalize"])
        numbers = options if normalize else options[:-1]
        if not blend and not numbers:
            numbers = ["1"] * len(items)
        weights = tuple(float(number) for number in numbers if _OPTION.fullmatch(number))
        if len(weights) != len(numbers) or len(weights) != len(items):
            raise ValueError(
                f".{found['name']}() needs one number for each of its {len(items)} prompts, "
                f"got {shown(given)}"
            )
        for weight in weights:
            check_weight(weight, given)
        if blend and normalize and sum(weights) == 0:
            raise ValueError("the weights of a .blend() must not add up to 0; use no_normalize")
        prompts = tuple(self.prompt(*item) for item in items)
        return CompelPrompt(prompts, weights, "blend" if blend else "and", normalize)

    def _items(self, start: int, end: int) -> list[tuple[int, int]] | None:
        """The ranges of a list of quoted, bracketed or single words, or None if it is no such list."""
        items = []
        while True:
            while start < end and self.text[start].isspace():
                start += 1
            closing = self.closing.get(start, end) if self.text[start] in '("' else end
            if closing < end:
                items.append((start + 1, closing))
                stop = closing + 1
            else:
                word = re.compile(r'[^\s()",]+').match(self.text, start, end)
                if word is None:
                    return None
                items.append(word.span())
                stop = word.end()
            while stop < end and self.text[stop].isspace():
                stop += 1
            if stop == end:
                return items
            if self.text[stop] != ",":
                return None
            start = stop + 1

    def prompt(self, start: int, end: int) -> Pieces:
        """The pieces of a range; neighbours of one weight are joined."""
        joined: list[_Piece] = []
        texts: list[list[str]] = []
        for piece in self._pieces(start, end, 1.0, 0):
            check_weight(piece.weight, piece.text)
            if joined and joined[-1].weight == piece.weight:
                texts[-1] += [*([" "] if self._space(joined[-1].end, piece.start) else []), piece.text]
                joined[-1].end = piece.end
            else:
                joined.append(piece)
                texts.append([piece.text])
        pieces = tuple(("".join(text), piece.weight) for text, piece in zip(texts, joined, strict=True))
        return pieces or (("", 1.0),)

    def _space(self, start: int, end: int) -> bool:
        return any(letter.isspace() or letter in '()"' for letter in self.text[start:end])

    def _pieces(self, start: int, end: int, scale: float, depth: int) -> Iterator[_Piece]:
        check_nesting(depth)
        at = start
        while at < end:
            if self.text[at].isspace():
                at += 1
                continue
            closing = self.closing.get(at, end)
            if closing < end:
                factor, stop = self._weight_at(closing + 1, end)
                yield from self._pieces(at + 1, closing, scale * factor, depth + 1)
                at = stop
                continue
            word = _WEIGHTED_WORD.match(self.text, at, end)
            if word is not None:
                text, factor, stop = word["word"], _factor(word["weight"]), word.end()
            else:
                found = (_INNER_WORD if depth else _FREE_WORD).match(self.text, at, end)
                assert found is not None  # the letter is no space
                text, factor, stop = found.group(), 1.0, found.end()
            self._refuse_swap(text)
            yield _Piece(_ESCAPED.sub(r"\1", text), scale * factor, at, stop)
            at = stop

    def _weight_at(self, at: int, end: int) -> tuple[float, int]:
        """The factor after a closing bracket or quote, and where it ends."""
        found = _WEIGHT.match(self.text, at, end)
        return (1.0, at) if found is None else (_factor(found["weight"] or found["attend"]), found.end())

    def _refuse_swap(self, text: str) -> None:
        if ".swap(" in text:
            raise ValueError(".swap() needs control of the attention, which is not supported")


def _factor(weight: str) -> float:
    """The factor of a run of plus or minus, or of a number."""
    if set(weight) <= {"+"}:
        return _power(PLUS, len(weight))
    return _power(MINUS, len(weight)) if set(weight) <= {"-"} else float(weight)


def _power(base: float, exponent: int) -> float:
    try:
        return float(base**exponent)
    except OverflowError:
        raise ValueError(f"a weight of {exponent:,} plus signs is too large") from None
