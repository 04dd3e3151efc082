"""Checks that must read a tensor's values."""

from __future__ import annotations

from torch import Tensor


def all_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite. A sum reads each once, and all but always settles it."""
    if not tensor.is_floating_point():
        return True
    wide = tensor.float()  # sums of 16-bit values are slow on a CPU, and float8 has none
    return bool(wide.sum().isfinite()) or bool(wide.isfinite().all())
