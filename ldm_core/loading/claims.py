"""A claim: the value that one source gives to one field of a model's configuration, and its strength."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from ldm_core.support.printable import shown


class Strength(IntEnum):
    """The strongest claim on a field is used. Proofs override no claim, but must agree with it."""

    KNOWN = 1  # a preset has exactly these tensors
    SAID = 2  # a file, its settings, a YAML file, or a preset that the caller names
    GIVEN = 3  # a complete configuration that the caller passes
    PART = 4  # the separate file that a part is loaded from
    ASKED = 5  # an argument of the caller for this field alone
    PROVED = 6  # tensors, and settings that belong to them


@dataclass(frozen=True)
class Claim:
    """One claim on a field of `LatentDiffusionConfig`, or on one of these additional fields:

    zero_terminal_snr   changes the noise schedule
    added_words         words added to the tokenizer's vocabulary, with their ids
    latent_size         rows and columns of the latents, which determine the image size
    """

    field: str
    value: Any
    source: str  # a noun phrase that follows "according to"
    strength: Strength = Strength.SAID

    def __str__(self) -> str:
        return f"{self.field} is {shown(self.value)} according to {self.source}"


def strongest(claims: Iterable[Claim], field: str) -> list[Claim]:
    """The strongest claims on a field, proofs excluded."""
    words = [claim for claim in claims if claim.field == field and claim.strength < Strength.PROVED]
    top = max((claim.strength for claim in words), default=None)
    return [claim for claim in words if claim.strength == top]
