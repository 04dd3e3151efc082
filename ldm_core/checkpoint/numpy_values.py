"""NumPy scalars and arrays out of a pickle, read from the records that describe them.

NumPy pickles a scalar as scalar(dtype(name), bytes), and an array as _reconstruct(…) with the state
(version, shape, dtype, is_fortran_order, bytes). Protocol 2 may hold the bytes as latin-1 text.
"""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor

from ldm_core.checkpoint.pickle_values import MAX_DIMENSIONS, InertObject

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
    """The plain value of a NumPy scalar's record; None for anything else, or where it is damaged."""
    match value:
        case InertObject(name=name, args=(dtype, str() | bytes() as data)) if name in _SCALAR:
            # The length first: a pickle may hold one long text many times.
            raw = _bytes(data) if len(data) <= _MAX_SCALAR else None
            if raw is not None and len(raw) == _text_bytes(dtype):
                return raw.decode("utf-32-le", errors="replace").rstrip("\0")
            tensor = _tensor(dtype, (), raw)
            return None if tensor is None else tensor.item()
    return None


def numpy_array(value: Any) -> Tensor | None:
    """A NumPy array's record as a tensor; None for anything else, or where it is damaged."""
    match value:
        case InertObject(name=name, state=(_, tuple(shape), dtype, is_fortran, data)) if name in _ARRAY:
            if not is_fortran:
                return _tensor(dtype, shape, data)
            tensor = _tensor(dtype, shape[::-1], data)
            return None if tensor is None else tensor.permute(*reversed(range(len(shape))))
    return None


def _tensor(dtype: Any, shape: tuple[Any, ...], data: Any) -> Tensor | None:
    torch_dtype, raw = _torch_dtype(dtype), _bytes(data)
    if torch_dtype is None or raw is None or len(shape) > MAX_DIMENSIONS:
        return None
    if any(type(n) is not int or not 0 <= n < 2**31 for n in shape):
        return None
    if len(raw) != math.prod(shape) * torch_dtype.itemsize:
        return None
    if not raw:
        return torch.empty(shape, dtype=torch_dtype)
    return torch.frombuffer(bytearray(raw), dtype=torch_dtype).reshape(shape)


def _torch_dtype(dtype: Any) -> torch.dtype | None:
    """numpy.dtype("f4", False, True) with the state (3, "<", …); single bytes have the order "|"."""
    match dtype:
        case InertObject(name="numpy.dtype", args=(str(code), *_), state=(_, str(order), *_)):
            return _DTYPES.get(code) if order in "<|" else None
    return None


def _text_bytes(dtype: Any) -> int | None:
    """How many bytes a text of this dtype, as "U5", has: four for each character."""
    match dtype:
        case InertObject(name="numpy.dtype", args=(str(code), *_), state=(_, "<", *_)):
            return 4 * int(code[1:]) if re.fullmatch("U[0-9]{1,6}", code) else None
    return None


def _bytes(data: Any) -> bytes | None:
    if isinstance(data, str):
        try:
            return data.encode("latin-1")
        except UnicodeEncodeError:
            return None
    return bytes(data) if isinstance(data, bytes | bytearray) else None
