"""JSON from a file, parsed within limits."""

from __future__ import annotations

import json
from typing import Any

from ldm_core.support.printable import shown

MAX_NESTING = 32  # mappings and lists within one another; settings files have four
MAX_DIGITS = 4000  # of a whole number; Python itself takes quadratic time for more, or refuses them


def parse_json(text: Any, source: str, error: type[ValueError] = ValueError) -> Any:
    """The value of a JSON text. Raises `error`, beginning with `source`, for text that is not JSON.

    NaN and Infinity are read, since diffusers writes them; the caller checks numbers.
    """
    if not isinstance(text, str):  # the metadata of a pickle may be anything
        raise error(f"{source}: expected JSON, not {shown(text)}")
    try:
        value = json.loads(text, parse_int=_whole_number)
    except (ValueError, RecursionError) as reason:
        raise error(f"{source}: not valid JSON ({reason})") from reason
    inner = [value]
    for _ in range(MAX_NESTING):
        inner = [
            item
            for outer in inner
            if isinstance(outer, dict | list)
            for item in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not inner:
            return value
    raise error(f"{source}: its JSON is nested more than {MAX_NESTING} deep")


def _whole_number(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits):,} digits")
    return int(digits)
