"""Converts the records of NumPy scalars and arrays in a pickle to values and tensors.

NumPy pickles a scalar as scalar(dtype(name), bytes), and an array as _reconstruct(…) with the state
(version, shape, dtype, is_fortran_order, bytes). Protocol 2 can store the bytes as latin-1 text.
"""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor

from ldm_core.checkpoint.pickle_values import MAX_DIMENSIONS, InertObject
from ldm_core.checkpoint.work_budget import Budget

_DTYPES = {
    "b1": torch.bool,
    "i1": torch.int8,
    "i2": torch.int16,
    "i4": torch.int32,
    "i8": torch.int64,
    "u1": torch.uint8,
    "f2": torch.float16,
    "f4": torch.float32,
    "f8": torch.float64,
    "c8": torch.complex64,
    "c16": torch.complex128,
    **{f"u{n}": getattr(torch, f"uint{8 * n}") for n in (2, 4, 8) if hasattr(torch, f"uint{8 * n}")},
}
_SCALAR = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
_MAX_SCALAR = 4096  # bytes
_ARRAY = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")


def numpy_scalar(value: Any) -> bool | int | float | complex | str | None:
    """The value of a NumPy scalar's record; None for another or a damaged record."""
    match value:
        case InertObject(name=name, args=(dtype, str() | bytes() as data)) if name in _SCALAR:
            # Check the length first, since a pickle can contain one long text many times.
            raw = _bytes(data) if len(data) <= _MAX_SCALAR else None
            if raw is not None and len(raw) == _text_bytes(dtype):
                return raw.decode("utf-32-le", errors="replace").rstrip("\0")
            torch_dtype = _torch_dtype(dtype)
            if raw is not None and torch_dtype is not None and len(raw) == torch_dtype.itemsize:
                return torch.frombuffer(bytearray(raw), dtype=torch_dtype).item()
    return None


def numpy_array(value: Any, budget: Budget) -> Tensor | None:
    """The tensor of a NumPy array's record; None for another or a damaged record.

    The length is checked and the budget is charged before anything is copied.
    """
    match value:
        case InertObject(
            name=name, state=(_, tuple(shape), dtype, is_fortran, str() | bytes() | bytearray() as data)
        ) if name in _ARRAY:
            torch_dtype = _torch_dtype(dtype)
            if torch_dtype is None or not _is_shape(shape):
                return None
            if len(data) != math.prod(shape) * torch_dtype.itemsize:
                return None
            budget.spend(2 * len(data))
            raw = _bytes(data)
            if raw is None:
                return None
            empty = torch.empty(0, dtype=torch_dtype)
            flat = torch.frombuffer(bytearray(raw), dtype=torch_dtype) if raw else empty
            if not is_fortran:
                return flat.reshape(shape)
            return flat.reshape(shape[::-1]).permute(*reversed(range(len(shape))))
    return None


def _is_shape(shape: tuple[Any, ...]) -> bool:
    return len(shape) <= MAX_DIMENSIONS and all(type(n) is int and 0 <= n < 2**31 for n in shape)


def _torch_dtype(dtype: Any) -> torch.dtype | None:
    """numpy.dtype("f4", False, True) with the state (3, "<", …); single bytes have the order "|"."""
    match dtype:
        case InertObject(name="numpy.dtype", args=(str(code), *_), state=(_, str(order), *_)):
            return _DTYPES.get(code) if order in "<|" else None
    return None


def _text_bytes(dtype: Any) -> int | None:
    """The bytes of a text of a dtype such as "U5": four per character."""
    match dtype:
        case InertObject(name="numpy.dtype", args=(str(code), *_), state=(_, "<", *_)):
            return 4 * int(code[1:]) if re.fullmatch("U[0-9]{1,6}", code) else None
    return None


def _bytes(data: str | bytes | bytearray) -> bytes | bytearray | None:
    if not isinstance(data, str):
        return data
    try:
        return data.encode("latin-1")
    except UnicodeEncodeError:
        return None
