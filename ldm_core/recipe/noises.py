"""The noise that the pictures of a file were drawn from, which is needed to vary them or draw them again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ldm_core.support.limits import is_number, is_whole
from ldm_core.support.printable import shown

Mixture = tuple[tuple[int, float], ...]  # pairs (seed, amount), in the order in which they were mixed

MAX_SEED = 2**63 - 1
MAX_PICTURES = 64  # of a grid in one file
MAX_VARIATIONS = 256  # of one picture, one after the other


@dataclass(frozen=True)
class Noises:
    """What pictures that were drawn alike have of their own, and how they were drawn from it.

    mixtures: for each picture, pairs (seed, amount). The first seed's noise is mixed with the noise of each
        further one: x = cos(amount pi/2) x + sin(amount pi/2) noise.
    alone: whether the pictures come from this noise and the prompt alone, and not from other pictures, too.
    chaos: 0 … 100. tile: whether the pictures repeat without a seam.

    Raises ValueError for other values.
    """

    mixtures: tuple[Mixture, ...]
    alone: bool = True
    chaos: int = 0
    tile: bool = False

    def __post_init__(self) -> None:
        mixtures = self.mixtures
        if not isinstance(mixtures, tuple) or not 1 <= len(mixtures) <= MAX_PICTURES:
            raise ValueError(
                f"noises: expected mixtures of 1..{MAX_PICTURES} pictures, got {shown(mixtures)}"
            )
        for mixture in mixtures:
            if not isinstance(mixture, tuple) or not 1 <= len(mixture) <= MAX_VARIATIONS:
                raise ValueError(
                    f"noises: expected 1..{MAX_VARIATIONS} pairs (seed, amount), got {shown(mixture)}"
                )
            for pair in mixture:
                if not _is_pair(pair):
                    raise ValueError(
                        f"noises: expected a seed in 0..2**63-1 and an amount in [0, 1], got {shown(pair)}"
                    )
        if not is_whole(self.chaos, 0, 100):
            raise ValueError(f"noises: chaos must be a whole number in 0..100, not {shown(self.chaos)}")
        for name in ("alone", "tile"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"noises: {name} must be true or false, not {shown(getattr(self, name))}")


def _is_pair(pair: Any) -> bool:
    return (
        isinstance(pair, tuple)
        and len(pair) == 2
        and is_whole(pair[0], 0, MAX_SEED)
        and is_number(pair[1])
        and 0 <= pair[1] <= 1
    )


def mixtures_of(lists: Any, depth: int = 3) -> Any:
    """The mixtures of JSON lists, as tuples; what is no list stays as it is, and is refused by `Noises`."""
    if not isinstance(lists, list) or depth == 0:
        return lists
    return tuple(mixtures_of(one, depth - 1) for one in lists)
