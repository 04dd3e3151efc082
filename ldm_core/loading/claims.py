"""A claim: what somebody says of one field of a model's configuration, and how much that counts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from ldm_core.support.printable import shown


class Strength(IntEnum):
    """Of two claims on one field, the stronger is taken. Proofs overrule nothing, but must agree with it."""

    KNOWN = 1  # a preset has exactly these tensors
    SAID = 2  # a file, its settings or a YAML file say so, or a preset that the caller names
    GIVEN = 3  # a whole configuration that the caller gives
    PART = 4  # the file that a part is taken from, instead of the main file
    ASKED = 5  # the caller's word on this field alone
    PROVED = 6  # tensors, and numbers that belong to them


@dataclass(frozen=True)
class Claim:
    """One claim on a field of `LatentDiffusionConfig`, or on one of these:

    zero_terminal_snr   changes the noise schedule
    added_words         beyond the tokenizer's vocabulary, with their ids
    latent_size         rows and columns of the latents, from which follows the size of the pictures
    """

    field: str
    value: Any
    source: str  # in words that fit after "according to"
    strength: Strength = Strength.SAID

    def __str__(self) -> str:
        return f"{self.field} is {shown(self.value)} according to {self.source}"


def strongest(claims: Iterable[Claim], field: str) -> list[Claim]:
    """The strongest claims on a field that are no proofs."""
    words = [claim for claim in claims if claim.field == field and claim.strength < Strength.PROVED]
    top = max((claim.strength for claim in words), default=None)
    return [claim for claim in words if claim.strength == top]
