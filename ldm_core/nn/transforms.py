"""Whether a function transform of PyTorch is active: `torch.func` (vmap, jvp, grad) or forward-mode AD.

Inside a transform a tensor may be a wrapper without storage. Preallocated buffers, `out=` arguments, caches
and queries for a memory format other than contiguous fail there, so fast paths that use them are not taken.
"""

from __future__ import annotations

import torch
from torch.autograd import forward_ad


def transforming() -> bool:
    """Whether the current call runs inside `torch.func.vmap`, `jvp` or `grad`, or in forward-mode AD."""
    return torch._C._are_functorch_transforms_active() or forward_mode()


def forward_mode() -> bool:
    """Whether the current call runs inside `torch.func.jvp` or `torch.autograd.forward_ad.dual_level`."""
    return forward_ad._current_level >= 0
