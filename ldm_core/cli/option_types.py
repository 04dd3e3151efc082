"""Conversions of the values of options. Each raises argparse.ArgumentTypeError for another value."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from typing import Any

from ldm_core.support.limits import MAX_SIZE
from ldm_core.support.printable import shown


def whole(low: int, high: int) -> Callable[[str], int]:
    """The conversion to a whole number in low..high."""

    def convert(text: str) -> int:
        if not re.fullmatch(r"\d{1,9}", text) or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"expected a whole number in {low}..{high}, not {shown(text)}")
        return int(text)

    return convert


def number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"expected a number, not {shown(text)}")
    return number


def seeds(text: str) -> int | list[int]:
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected whole numbers separated by commas, not {shown(text)}"
        ) from None
    return seeds if "," in text else seeds[0]


def size(text: str) -> tuple[int, int]:
    match: Any = re.fullmatch(r"(\d{1,6})(?:[xX×](\d{1,6}))?", text)
    size = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not all(1 <= side <= MAX_SIZE for side in size):
        raise argparse.ArgumentTypeError(
            f"expected WIDTHxHEIGHT or one number, such as 768x512, each in 1..{MAX_SIZE}, not {shown(text)}"
        )
    return size
