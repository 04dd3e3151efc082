"""The captions of a picture: what it is called, in which style, and the words that CLDR has for it.

Three in four are the concept's name ("red apple") and the rest one of its other names or keywords ("fruit");
three in five say the style, too ("red apple, noto emoji"), so that it can be asked for and need not be.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def all_captions(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Every caption of a picture, as often as its share asks for: training draws one of them, all alike.

    record: a row of `metadata.jsonl`, of which "text", "style", "names" and "keywords" are read.
    """
    name = record["text"]
    others = [other for other in dict.fromkeys((*record["names"], *record["keywords"])) if other != name]
    words = [name] * 3 * max(len(others), 1) + others
    return tuple(caption for word in words for caption in (*[word] * 2, *[f"{word}, {record['style']}"] * 3))


def captions(record: Mapping[str, Any], generator: torch.Generator) -> str:
    """One caption of a picture, drawn from `all_captions`."""
    choices = all_captions(record)
    return choices[int(torch.randint(len(choices), (), generator=generator))]
