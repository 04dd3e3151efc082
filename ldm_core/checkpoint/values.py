"""Checks of tensors' values."""

from __future__ import annotations

from torch import Tensor

AT_ONCE = 2**20  # values, whose float32 copy stays in a processor's cache


def all_finite(tensor: Tensor) -> bool:
    """Whether all values are finite. A finite sum, which reads each value once, proves this."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    rows = max(1, AT_ONCE * len(tensor) // tensor.numel()) if tensor.ndim else 0
    for part in tensor.split(rows) if rows else (tensor,):
        wide = part.float()  # sums of 16-bit values are slow on a CPU, and float8 does not support them
        if not (wide.sum().isfinite() or wide.isfinite().all()):
            return False
    return True
