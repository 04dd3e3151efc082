"""A part of many similar cases by default, and the others where it is slow."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def one_in(number: int, cases: Iterable[Any]) -> list[Any]:
    """Every so-many-th case by default; the others with the mark `slow`."""
    return [
        case if k % number == 0 else pytest.param(case, marks=pytest.mark.slow)
        for k, case in enumerate(cases)
    ]
