"""The limits of a prompt's text, which bound the work of the scanners."""

from __future__ import annotations

import math
import re
from typing import Any

from ldm_core.support.printable import shown

MAX_LETTERS = 2**15  # of a prompt, as in a recipe
MAX_NESTING = 100  # brackets that are open at the same time


def checked(text: Any) -> str:
    """The text. Raises ValueError unless it is a str of at most MAX_LETTERS letters."""
    if not isinstance(text, str):
        raise ValueError(f"expected a prompt as a str, got {type(text).__name__}")
    if len(text) > MAX_LETTERS:
        raise ValueError(f"a prompt must have at most {MAX_LETTERS:,} letters, not {len(text):,}")
    return text


def check_nesting(depth: int) -> None:
    """Raise ValueError for more than MAX_NESTING open brackets."""
    if depth > MAX_NESTING:
        raise ValueError(f"a prompt may have at most {MAX_NESTING} open brackets within each other")


def check_weight(weight: float, text: str) -> None:
    """Raise ValueError for a weight that is not finite."""
    if not math.isfinite(weight):
        raise ValueError(f"the weight of {shown(text)} must be a finite number, not {weight}")


def separated(text: str, word: str) -> list[str]:
    """The parts of a text between the occurrences of a word that stands alone."""
    return re.split(rf"\b{word}\b", text)
