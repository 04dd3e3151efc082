"""A value that is computed from a weight once, and again when the weight has changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

Value = TypeVar("Value")
SAMPLE = 64  # values of a weight that are compared at every call


class Derived(Generic[Value]):
    """`make(weight, *key)`, kept for the last weight and key that it was called with.

    A weight has changed if it is another tensor, or if PyTorch has counted a write to it. Writes through
    `weight.data` are not counted, so a sample of the values is compared, too. A change that spares the whole
    sample is not noticed: call `forget`.
    """

    def __init__(self, make: Callable[..., Value]) -> None:
        self._make = make
        self._kept: tuple[Any, Tensor, Tensor, Value] | None = None

    def __call__(self, weight: Tensor, *key: Any) -> Value:
        version = -1 if weight.is_inference() else weight._version
        state, sample = (weight.data_ptr(), weight.shape, weight.dtype, version, key), _sample(weight)
        kept = self._kept  # read once, since another thread may write it
        if kept is None or kept[0] != state or not torch.equal(kept[1], sample):
            source = weight.detach()  # keeps the storage alive, so that its address is not reused
            kept = self._kept = (state, sample.clone(), source, self._make(source, *key))
        return kept[3]

    def forget(self) -> None:
        """Compute the value again when it is needed next."""
        self._kept = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Derived, (self._make,)  # a copy computes its own value


def _sample(weight: Tensor) -> Tensor:
    """Values at equal distances in the memory of a weight that is dense in any order of its axes."""
    weight = weight.detach()
    return weight.as_strided((min(SAMPLE, weight.numel()),), (max(1, weight.numel() // SAMPLE),))
