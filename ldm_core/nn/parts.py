"""Apply a function of tokens to some of them at a time, so that its intermediate values stay in a cache."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

PART_BYTES = 16 * 2**20  # larger allocations are returned to the system, and cause page faults every time


def in_parts(function: Callable[[Tensor], Tensor], x: Tensor, width: int) -> Tensor:
    """function(x) for x (B, N, C), where `function` treats every token alone and has `width` values for it.

    Only on a CPU and without gradients or a tracer; elsewhere all tokens at once.
    """
    if x.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return function(x)
    tokens = x.flatten(0, 1)
    rows = equal_parts(len(tokens), PART_BYTES // (width * x.element_size()))
    return torch.cat([function(part) for part in tokens.split(rows)]).view(x.shape)


def equal_parts(rows: int, most: int) -> int:
    """The largest number, at most `most` and more than half of it, of which `rows` is a multiple.

    If there is none, the number of rows of nearly equal parts. Matrix products are slower for a remainder.
    """
    parts = max(1, -(-rows // max(1, most)))
    fewest = next((k for k in range(parts, 2 * parts) if rows % k == 0), parts)
    return max(1, -(-rows // fewest))
