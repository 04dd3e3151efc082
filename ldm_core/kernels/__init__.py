"""GPU kernels in Triton, beside the plain PyTorch they stand in for. Importing this imports no Triton.

attention              flash_attention.py     `set_attention(model, "triton")`
SiLU(group norm)       group_norm_silu.py     `set_kernels(model, "triton")`
value * GELU(gate)     geglu.py               `set_kernels(model, "triton")`
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ldm_core.module_tree import named_modules


def interpreted() -> bool:
    """Whether Triton interprets its kernels in Python, on CPU tensors (its variable TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


def require_triton(what: str) -> None:
    """Raise ValueError, saying what is missing, where no Triton kernel could ever run."""
    if find_spec("triton") is None:
        raise ValueError(f"{what} needs the package triton, which is not installed: pip install triton")
    if not interpreted() and not torch.cuda.is_available():
        raise ValueError(f"{what} needs a CUDA device, and PyTorch finds none here")


def on_device(what: str, *tensors: Tensor) -> None:
    """Raise ValueError for tensors that are not all on one GPU that the kernels were made for."""
    devices = {tensor.device for tensor in tensors}
    if len(devices) > 1:
        raise ValueError(f"{what}: all tensors on one device, got {', '.join(sorted(map(str, devices)))}")
    (device,) = devices
    if device.type != "cuda" and not interpreted():
        raise ValueError(f"{what} needs tensors on a CUDA device, got them on {device}")


def set_kernels(model: Any, backend: str) -> None:
    """Make `model` compute group norm with SiLU, and GEGLU, by fused kernels ("triton") or plainly ("torch").

    `model` is a module or a dataclass of them, such as `LatentDiffusion`. Each block holds the function that
    it uses, so one model can be switched and another left alone. Attention has its own switch,
    `set_attention`. Raises ValueError for an unknown name, where the kernels cannot run, or if `model` has no
    such block.
    """
    functions = _functions(backend)
    modules = [module for _, module in named_modules(model)]
    places = [(module, name) for module in modules for name in functions if name in module.__dict__]
    if not places:
        raise ValueError(f"{type(model).__name__} has no block that a kernel could be set for")
    for module, name in places:
        setattr(module, name, functions[name])


def _functions(backend: str) -> dict[str, Callable[..., Tensor]]:
    """What the blocks' attributes of these names become."""
    if backend == "torch":
        from ldm_core.layers import geglu, norm_silu

        return {"norm_silu": norm_silu, "geglu": geglu}
    if backend == "triton":
        require_triton("set_kernels(model, 'triton')")
        from ldm_core.kernels.geglu import geglu as fused_geglu
        from ldm_core.kernels.group_norm_silu import group_norm_silu

        return {"norm_silu": group_norm_silu, "geglu": fused_geglu}
    raise ValueError(f"unknown kernels {backend!r}; expected torch or triton")
