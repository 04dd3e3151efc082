"""What a control adds to the features of a U-Net, as one value.

A ControlNet adds to the skip connections and to the output of the middle block (Zhang et al. 2023,
arXiv:2302.05543, section 3.2), a T2I-Adapter to the features of each level on the way down (Mou et al. 2023,
arXiv:2302.08453, section 3.3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Residuals:
    """Tensors that are added to the features of a U-Net; `a + b` adds both, `Residuals()` nothing.

    skips: one for each skip connection, in their order (SD1 has 12), each (B, C, h, w) of this
        connection, or (B, C, 1, 1) for all of its pixels.
    middle: the same for the output of the middle block.
    features: one for each level, added to the output of its last block before this is stored as a skip
        connection.
    """

    skips: tuple[Tensor, ...] = ()
    middle: Tensor | None = None
    features: tuple[Tensor, ...] = ()

    def __add__(self, other: Residuals) -> Residuals:
        """Raises ValueError if the numbers of tensors or their shapes differ."""
        if not isinstance(other, Residuals):
            return NotImplemented
        middle = self.middle if other.middle is None else other.middle
        if self.middle is not None and other.middle is not None:
            middle = plus(self.middle, other.middle)
        skips = _sum(self.skips, other.skips, "skips")
        return Residuals(skips, middle, _sum(self.features, other.features, "features"))

    def map(self, change: Callable[[Tensor], Tensor]) -> Residuals:
        """Each tensor changed in the same way."""
        return Residuals(
            tuple(map(change, self.skips)),
            None if self.middle is None else change(self.middle),
            tuple(map(change, self.features)),
        )

    def __mul__(self, factor: float) -> Residuals:
        return self.map(lambda tensor: tensor * factor)

    def on_rows(self, rows: Sequence[int], total: int) -> Residuals:
        """Residuals of `total` images: these for the given rows, and zeros for all others."""
        if list(rows) == list(range(total)):
            return self

        def spread(tensor: Tensor) -> Tensor:
            spread = tensor.new_zeros(total, *tensor.shape[1:])
            spread[list(rows)] = tensor
            return spread

        return self.map(spread)

    def per_level(self, levels: int) -> Sequence[Tensor | None]:
        """The feature to add on each level. Raises ValueError for another number of features."""
        if self.features and len(self.features) != levels:
            raise ValueError(f"residuals: expected features of {levels} levels, got {len(self.features)}")
        return self.features or (None,) * levels

    def added(self, skips: list[Tensor], middle: Tensor) -> tuple[list[Tensor], Tensor]:
        """(skips, middle) with these residuals. Raises ValueError for others than the U-Net's."""
        if self.skips and len(self.skips) != len(skips):
            raise ValueError(f"residuals: expected {len(skips)} skip connections, got {len(self.skips)}")
        if self.skips:
            skips = [plus(skip, residual) for skip, residual in zip(skips, self.skips)]
        return skips, middle if self.middle is None else plus(middle, self.middle)


def _sum(ours: Sequence[Tensor], theirs: Sequence[Tensor], what: str) -> tuple[Tensor, ...]:
    if not ours or not theirs:
        return tuple(ours or theirs)
    if len(ours) != len(theirs):
        raise ValueError(
            f"residuals: cannot add {len(ours)} and {len(theirs)} {what}: the controls' U-Nets differ"
        )
    return tuple(plus(a, b) for a, b in zip(ours, theirs))


def plus(x: Tensor, residual: Tensor) -> Tensor:
    """The sum. Raises ValueError if it has another shape than both, unless one has a single pixel."""
    pixel = (1, 1) in (tuple(x.shape[2:]), tuple(residual.shape[2:]))
    if x.shape != residual.shape and not (pixel and x.shape[:2] == residual.shape[:2]):
        raise ValueError(f"residuals: expected {tuple(x.shape)}, got {tuple(residual.shape)}")
    return x + residual
