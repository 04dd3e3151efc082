"""Whether a call only computes: no gradients, no function transform of PyTorch, nothing that records it.

Inside a transform (`torch.func`'s vmap, jvp, grad, or forward-mode AD) a tensor may be a wrapper without
storage. Preallocated buffers, `out=` arguments, caches and queries for a memory format other than contiguous
fail there, so fast paths that use them are not taken. A tracer would record what a fast path keeps as a
constant.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter
from torch.utils._python_dispatch import _get_current_dispatch_mode


def transforming() -> bool:
    """Whether the current call runs inside `torch.func.vmap`, `jvp` or `grad`, or in forward-mode AD."""
    return torch._C._are_functorch_transforms_active() or forward_mode()


def only_computes(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether a layer on a CPU may use operators that have no gradient and that no tracer knows."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    gradient = x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype
        and type(weight) in (Tensor, Parameter)
        and not (gradient and torch.is_grad_enabled())
        and not (torch.is_autocast_enabled("cpu") or transforming())
        and _get_current_dispatch_mode() is None
    )


def forward_mode() -> bool:
    """Whether the current call runs inside `torch.func.jvp` or `torch.autograd.forward_ad.dual_level`."""
    return forward_ad._current_level >= 0
