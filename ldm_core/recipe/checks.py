"""Checks of the values of a recipe's fields, which raise ValueError and name the field."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

from ldm_core.support.limits import MAX_ROWS, MAX_SIZE, MAX_TIMESTEPS
from ldm_core.support.printable import shown

# Limits far above the needs of any model, and within the range of the library's computations.
MAX_LETTERS = 2**15  # of a prompt, a name or a path
MAX_STEPS, MAX_CLIP_SKIP = 100_000, 1000
MAX_OBJECTS = 1000  # of a layout
RANGES = {
    "seed": (0, 2**63 - 1),
    "steps": (1, MAX_STEPS),
    "width": (1, MAX_SIZE),
    "height": (1, MAX_SIZE),
    "clip_skip": (0, MAX_CLIP_SKIP),
    "noise_level": (0, MAX_TIMESTEPS),
    "embedding_row": (0, MAX_ROWS),
    "class_count": (1, MAX_ROWS),
}
NONE = type(None)


def check(name: str, value: Any, types: tuple[type, ...], expected: str) -> None:
    """Raise ValueError for a value of the wrong type or out of range. A bool is not accepted as an int."""
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise ValueError(f"{name} must be {expected}, not {shown(value)}")
    if name in RANGES and isinstance(value, int):
        low, high = RANGES[name]
        if not low <= value <= high:
            raise ValueError(f"{name} must be in {low}..{high}, not {shown(value)}")
    if isinstance(value, float | int) and not _is_finite(value):
        raise ValueError(f"{name} must be a finite number, not {shown(value)}")
    if isinstance(value, str):
        if len(value) > MAX_LETTERS:
            raise ValueError(f"{name} must have at most {MAX_LETTERS:,} letters, not {len(value):,}")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(f"{name} is not valid Unicode text: {value!a:.60}") from None


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an int beyond the range of a float
        return False


def read_built(cls: Any, data: dict[str, Any], what: str) -> Any:
    """A dataclass from its fields. Raises ValueError for unknown or missing ones."""
    known = [f.name for f in fields(cls)]
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise ValueError(f"{what} has unknown entries: {', '.join(map(ascii, unknown)):.80}")
    try:
        return cls(**data)
    except TypeError:
        missing = [name for name in known if name not in data]
        raise ValueError(f"{what} lacks {', '.join(missing)}") from None
