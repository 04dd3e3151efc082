"""Requirements of the Triton kernels: the package, and tensors on one GPU (or Triton's interpreter)."""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch
from torch import Tensor


def interpreted() -> bool:
    """Whether Triton interprets kernels in Python, on CPU tensors (the variable TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


def require_triton(what: str) -> None:
    """Raise ValueError that names what is missing if no Triton kernel can run on this machine."""
    if find_spec("triton") is None:
        raise ValueError(f"{what} needs the package triton, which is not installed: pip install triton")
    if not interpreted() and not torch.cuda.is_available():
        raise ValueError(f"{what} needs a CUDA device, and PyTorch finds none here")


def on_device(what: str, *tensors: Tensor) -> None:
    """Raise ValueError for tensors that are not all on one CUDA device."""
    devices = {tensor.device for tensor in tensors}
    if len(devices) > 1:
        raise ValueError(
            f"{what}: expected all tensors on one device, got {', '.join(sorted(map(str, devices)))}"
        )
    (device,) = devices
    if device.type != "cuda" and not interpreted():
        raise ValueError(f"{what} needs tensors on a CUDA device, got them on {device}")
