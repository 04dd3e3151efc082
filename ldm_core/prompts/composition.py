"""Prompts that are composed with AND, in the syntax of A1111's web UI.

    a castle :1.2 AND fog :0.5

The network predicts each alternative on its own, and guidance adds the differences from the unconditional
prediction, each with its weight (Liu et al. 2022, "Compositional Visual Generation with Composable Diffusion
Models", arXiv:2206.01714, equation 11).
"""

from __future__ import annotations

import re

from ldm_core.prompts.limits import check_weight, checked, separated

_NUMBER = re.compile(r"[+-]?(?:\d+\.?|\d*\.\d+)")


def alternatives(text: str) -> list[tuple[str, float]]:
    """The alternatives of a prompt, in order, and their weights. A prompt without AND is one alternative.

    AND is a word of its own, in capitals. The weight is a number after the last colon, at the end, otherwise
    1. "time 12:30" therefore is "time 12" with weight 30. Spaces at an alternative's end are dropped.
    Raises ValueError for text that is no str or longer than MAX_LETTERS, and for weights that are not finite.
    """
    found = []
    for part in separated(checked(text), "AND"):
        part = part.rstrip()
        before, colon, number = part.rpartition(":")
        if colon and _NUMBER.fullmatch(number.lstrip()):
            part, weight = before.rstrip(), float(number)
        else:
            weight = 1.0
        check_weight(weight, part)
        found.append((part, weight))
    return found
