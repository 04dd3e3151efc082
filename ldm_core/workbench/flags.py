"""The flags at the end of a prompt, as Midjourney has them.

    a cat, sleeping --ar 3:2 --no dog, fence --seed 7 --chaos 20 --tile --iw 0.5

The grammar; a flag begins at "--" (or "—", which phones make of it) after a space and before a letter:

    prompt = words { flag }
    flag   = "--" name [ value ]      value: all words up to the next flag

A "--" in front of anything else is part of the words.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ldm_core.support.printable import shown

MAX_LETTERS = 2**15  # of a prompt with its flags, as of a recipe's prompt
MAX_RATIO = 16  # of the longer to the shorter side
MAX_SEED = 2**63 - 1
_FLAG = re.compile(r"(?:^|(?<=\s))(?:--|—)(?=[^\W\d_])")


@dataclass(frozen=True)
class Flags:
    """A prompt and its flags.

    text: the prompt without flags.
    ar: (width, height), the proportions of the picture.
    no: what to avoid, the negative prompt.
    seed: of the first picture of a grid.
    chaos: 0 … 100, how far pictures stray from the prompt (`ldm_core.workbench.chaos`).
    tile: whether the picture repeats without a seam.
    iw: 0 … 2, the weight of a picture in the prompt.

    Raises ValueError for values out of these ranges. `str` is the inverse of `parse_flags`.
    """

    text: str = ""
    ar: tuple[int, int] | None = None
    no: str = ""
    seed: int | None = None
    chaos: int = 0
    tile: bool = False
    iw: float | None = None

    def __post_init__(self) -> None:
        if self.ar is not None:
            _check_ratio(self.ar)
        if self.seed is not None and not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"--seed must be a whole number in 0..2**63-1, not {shown(self.seed)}")
        if not 0 <= self.chaos <= 100:
            raise ValueError(f"--chaos must be a whole number in 0..100, not {shown(self.chaos)}")
        if self.iw is not None and not 0 <= self.iw <= 2:
            raise ValueError(f"--iw must be a number in 0..2, not {shown(self.iw)}")

    def __str__(self) -> str:
        words = [self.text] if self.text else []
        if self.ar is not None:
            words.append(f"--ar {self.ar[0]}:{self.ar[1]}")
        if self.no:
            words.append(f"--no {self.no}")
        if self.seed is not None:
            words.append(f"--seed {self.seed}")
        if self.chaos:
            words.append(f"--chaos {self.chaos}")
        if self.tile:
            words.append("--tile")
        if self.iw is not None:
            words.append(f"--iw {self.iw!r}")
        return " ".join(words)


def parse_flags(prompt: str) -> Flags:
    """Split a prompt from its flags.

    `--aspect` is `--ar`, and `--c` is `--chaos`. Several `--no` are joined with commas. Raises ValueError for
    an unknown flag, a flag that is given twice, a missing or extra value, and a value out of its range.
    """
    if len(prompt) > MAX_LETTERS:
        raise ValueError(f"a prompt must have at most {MAX_LETTERS:,} letters, not {len(prompt):,}")
    starts = [match.start() for match in _FLAG.finditer(prompt)]
    ends = [*starts[1:], len(prompt)]
    values: dict[str, Any] = {"text": " ".join(prompt[: starts[0] if starts else len(prompt)].split())}
    for start, end in zip(starts, ends):
        name, *value = prompt[start:end].lstrip("-—").split(maxsplit=1)
        field = NAMES.get(name.lower())
        if field is None:
            known = ", ".join(f"--{known}" for known in FIELDS)
            raise ValueError(f"unknown flag --{_short(name)}; expected {known}")
        parsed = FIELDS[field](" ".join(" ".join(value).split()))
        if field == "no" and "no" in values:
            parsed = f"{values['no']}, {parsed}"
        elif field in values:
            raise ValueError(f"--{field} is given twice")
        values[field] = parsed
    return Flags(**values)


def _short(text: str) -> str:
    return shown(text)[1:-1]


def _words(text: str) -> str:
    if not text:
        raise ValueError("--no takes words, such as --no dog, got nothing")
    return text


def _ratio(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5}):(\d{1,5})", text, re.ASCII)
    if match is None:
        raise ValueError(f"--ar takes two whole numbers, such as 3:2, not {shown(text)}")
    return int(match[1]), int(match[2])


def _check_ratio(ratio: tuple[int, int]) -> None:
    width, height = ratio
    if min(ratio) < 1:
        raise ValueError(f"--ar takes two positive numbers, such as 3:2, not {width}:{height}")
    if max(ratio) > MAX_RATIO * min(ratio):
        raise ValueError(f"--ar must be between 1:{MAX_RATIO} and {MAX_RATIO}:1, not {width}:{height}")


def _whole(name: str) -> Callable[[str], int]:
    def convert(text: str) -> int:
        if not re.fullmatch(r"\d{1,19}", text, re.ASCII):
            raise ValueError(f"--{name} takes one whole number, not {shown(text)}")
        return int(text)

    return convert


def _number(text: str) -> float:
    try:
        number = float(text) if len(text) <= 40 else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"--iw takes one number, such as 0.5, not {shown(text)}")
    return number


def _nothing(text: str) -> bool:
    if text:
        raise ValueError(f"--tile takes no value, got {shown(text)}; words come before the flags")
    return True


# The conversion of each flag's value; the names are fields of `Flags`.
FIELDS: dict[str, Callable[[str], Any]] = {
    "ar": _ratio,
    "no": _words,
    "seed": _whole("seed"),
    "chaos": _whole("chaos"),
    "tile": _nothing,
    "iw": _number,
}
NAMES = {name: name for name in FIELDS} | {"aspect": "ar", "c": "chaos"}
