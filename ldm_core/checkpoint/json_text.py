"""JSON from a file, parsed within limits."""

from __future__ import annotations

import json
from typing import Any

from ldm_core.checkpoint.errors import CheckpointError
from ldm_core.printable import shown

MAX_NESTING = 32  # mappings and lists within one another; settings files have four


def parse_json(text: Any, source: str) -> Any:
    """The value of a JSON text. Raises CheckpointError, beginning with `source`, for text that is not JSON.

    NaN and Infinity are read, since diffusers writes them; the caller checks numbers.
    """
    if not isinstance(text, str):  # the metadata of a pickle may be anything
        raise CheckpointError(f"{source}: expected JSON, not {shown(text)}")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{source}: not valid JSON ({error})") from error
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
    raise CheckpointError(f"{source}: its JSON is nested more than {MAX_NESTING} deep")
