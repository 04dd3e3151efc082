"""Parsing JSON from an untrusted file, within limits."""

from __future__ import annotations

import json
from typing import Any

from ldm_core.support.printable import shown

MAX_NESTING = 32  # nested mappings and lists; settings files have four levels
MAX_DIGITS = 4000  # of an int; Python needs quadratic time for more, or rejects them


def parse_json(text: Any, source: str, error: type[ValueError] = ValueError) -> Any:
    """The value of a JSON text. Raises `error`, beginning with `source`, for invalid JSON.

    NaN and Infinity are accepted, since diffusers writes them. The caller checks numbers.
    """
    if not isinstance(text, str):  # the metadata of a pickle may have any type
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
    raise error(f"{source}: the JSON has more than {MAX_NESTING} nested levels")


def _whole_number(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits):,} digits")
    return int(digits)
