"""How all kernels are launched: on the device of their tensors, with fused multiply-adds."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

# Stated at every launch: versions of Triton differ in whether they fuse multiplications and additions.
ALWAYS: dict[str, Any] = {"enable_fp_fusion": True}


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, on: Tensor, **options: Any) -> None:
    """Run `kernel` on `grid` with its arguments and the compiler's options, on the device of `on`.

    Triton launches on the current device and its current stream, wherever the tensors are, and PyTorch does
    not make the tensors' device the current one for an operator that is written in Python.
    """
    with device_of(on):
        kernel[grid](*arguments, **ALWAYS, **options)


def device_of(x: Tensor) -> AbstractContextManager[object]:
    """A context in which x's device is the current one. Switching costs microseconds."""
    if x.device.type != "cuda" or x.device.index == torch.cuda.current_device():
        return nullcontext()
    context: Callable[[torch.device], AbstractContextManager[object]] = torch.cuda.device
    return context(x.device)
