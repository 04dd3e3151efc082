"""How much memory a call takes: the peak of a process that does nothing else, over what it held before.

Linux alone keeps a peak for each address space (VmHWM), which can be set back to what is held now. What
`resource.getrusage` gives elsewhere never falls, and counts the parent that started the process with it.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

STATUS = Path("/proc/self/status")


def status_bytes(field: str) -> int:
    """VmRSS, what is held now, or VmHWM, the most so far."""
    lines = STATUS.read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def forget_peak() -> None:
    """Return what is free to the system, and begin a new peak."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


@torch.no_grad()
def peak_of(make: Callable[[], Callable[[], Any]]) -> int:
    """Bytes at the worst moment of the first call: weights and activations, but not what making took."""
    if not STATUS.exists():
        raise SystemExit("peak memory is measured on Linux alone, where there is /proc/self/status")
    forget_peak()
    before = status_bytes("VmRSS")
    call = make()
    forget_peak()
    call()
    return status_bytes("VmHWM") - before
