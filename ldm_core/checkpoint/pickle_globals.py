"""The classes and functions that a checkpoint's pickle may name and have honoured: tensors and containers.

Each is a function of our own that checks its arguments and builds a plain value or a description. Nothing
is looked up in a module, so the table below is all that a file can reach. The names are those that
`torch.save` writes for tensors, and Python and NumPy for their plain values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ldm_core.checkpoint.errors import CheckpointError
from ldm_core.checkpoint.pickle_values import (
    MAX_DIMENSIONS,
    InertObject,
    StorageRef,
    StorageType,
    StoredTensor,
)


@dataclass(frozen=True, eq=False)
class KnownFunction:
    """A name from the table and our function for it."""

    name: str
    build: Callable[..., Any]


def rebuild_tensor(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any = False, hooks: Any = None,
    metadata: Any = None,
) -> StoredTensor:  # fmt: skip
    """torch._utils._rebuild_tensor and _rebuild_tensor_v2: the storage says the dtype."""
    if not isinstance(storage, StorageRef) or storage.dtype is None:
        raise CheckpointError("a tensor is made from something that is no typed storage")
    return StoredTensor(storage, storage.dtype, offset, _integers(size), _integers(stride))


def rebuild_tensor_v3(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, dtype: Any,
    metadata: Any = None,
) -> StoredTensor:  # fmt: skip
    """torch._utils._rebuild_tensor_v3: float8 and unsigned types, which have no storage class."""
    if not isinstance(storage, StorageRef) or not isinstance(dtype, torch.dtype):
        raise CheckpointError("a tensor is made from something that is no storage")
    if storage.dtype not in (None, dtype):
        raise CheckpointError(f"a tensor of {dtype} is made from a storage of {storage.dtype}")
    return StoredTensor(storage, dtype, offset, _integers(size), _integers(stride))


def rebuild_parameter(data: Any, requires_grad: Any, hooks: Any, state: Any = None) -> Any:
    """torch._utils._rebuild_parameter: a parameter is read as its tensor."""
    return data


def rebuild_from_type(function: Any, kind: Any, args: Any, state: Any) -> Any:
    """torch._tensor._rebuild_from_type_v2: a tensor that had attributes, which are dropped."""
    if not isinstance(function, KnownFunction) or function.build not in (rebuild_tensor, rebuild_tensor_v3):
        return InertObject("torch._tensor._rebuild_from_type_v2", (function, kind, args, state))
    return function.build(*args)


def make_dict(*args: Any) -> dict[Any, Any]:
    """OrderedDict and Counter, from nothing, a mapping, or pairs."""
    result: dict[Any, Any] = {}
    for source in args:
        for key, value in source.items() if isinstance(source, dict) else source:
            result[checked_key(key)] = value
    return result


def make_defaultdict(*args: Any) -> dict[Any, Any]:
    """defaultdict, without its factory."""
    return make_dict(*args[1:])


def make_set(*args: Any) -> set[Any]:
    """set and frozenset."""
    return {checked_key(item) for source in args for item in _sequence(source)}


def make_size(*args: Any) -> tuple[int, ...]:
    """torch.Size, read as a tuple."""
    return _integers(args[0] if args else ())


def make_bytes(*args: Any) -> bytes:
    """bytes and bytearray, as old protocols write them: from nothing, bytes, or latin-1 text."""
    if not args:
        return b""
    data = args[0]
    return data.encode("latin-1") if isinstance(data, str) else b"".join([_checked(data, bytes, bytearray)])


def encode(text: Any, encoding: Any = "latin1") -> bytes:
    """_codecs.encode, which protocol 2 uses to hold bytes in text; no other encoding occurs."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise CheckpointError(f"bytes are encoded as {encoding!r} instead of latin-1")
    return text.encode("latin-1")


def make_complex(real: Any, imag: Any) -> complex:
    """A complex number from two real ones."""
    return complex(_checked(real, float, int), _checked(imag, float, int))


def checked_key(key: Any) -> Any:
    """The key, if hashing it is quick and runs no code of the file; a tuple of such is turned into text.

    Tuples nested deep would hash recursively; tuples, and integers beyond 64 bits, can be chosen to collide.
    """
    if type(key) is tuple and len(key) <= 16 and all(_is_atom(part, 256) for part in key):
        return str(key)
    if _is_atom(key) or isinstance(key, InertObject | KnownFunction | StorageType):
        return key
    raise CheckpointError(f"a dictionary key or set member of type {type(key).__name__} is not supported")


def _is_atom(value: Any, longest: float = math.inf) -> bool:
    if type(value) is int:
        return value.bit_length() <= 64
    if isinstance(value, str | bytes):
        return len(value) <= longest
    return value is None or isinstance(value, bool | float | torch.dtype)


def _sequence(value: Any) -> list[Any] | tuple[Any, ...] | set[Any]:
    return _checked(value, list, tuple, set)


def _integers(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or len(value) > MAX_DIMENSIONS:
        raise CheckpointError(
            f"a tensor's shape or strides are not a tuple of at most {MAX_DIMENSIONS} integers"
        )
    return tuple(value)


def _checked(value: Any, *kinds: type) -> Any:
    if not isinstance(value, kinds):
        raise CheckpointError(f"found {type(value).__name__} where {kinds[0].__name__} was expected")
    return value


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": rebuild_parameter,
    "torch._tensor._rebuild_from_type_v2": rebuild_from_type,
    "torch.Size": make_size,
    "collections.OrderedDict": make_dict,
    "collections.Counter": make_dict,
    "collections.defaultdict": make_defaultdict,
    "_codecs.encode": encode,
    # Python 2, and protocol 2 for its sake, call the builtins module __builtin__.
    **{
        f"{module}.{name}": function
        for module in ("builtins", "__builtin__")
        for name, function in (
            ("set", make_set),
            ("frozenset", make_set),
            ("bytes", make_bytes),
            ("bytearray", make_bytes),
            ("complex", make_complex),
        )
    },
}

_STORAGE_DTYPES: dict[str, torch.dtype | None] = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": None,
}

_DTYPE_NAMES = (
    "float16", "bfloat16", "float32", "float64", "half", "float", "double",
    "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu",
    "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "short", "int", "long",
    "bool", "complex32", "complex64", "complex128",
)  # fmt: skip

# Known and harmless, but not built: they stay inert objects, which what reads them takes apart.
KNOWN_RECORDS = frozenset((
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.dtype",
    "numpy.ndarray",
    "torch.nn.modules.container.ParameterDict",
    "torch.nn.parameter.Parameter",
    "torch.Tensor",
    "torch.device",
))  # fmt: skip

KNOWN: dict[str, Any] = {
    **{name: KnownFunction(name, function) for name, function in _FUNCTIONS.items()},
    **{
        f"{module}.{name}": StorageType(f"{module}.{name}", dtype)
        for module in ("torch", "torch.cuda", "torch.storage")
        for name, dtype in _STORAGE_DTYPES.items()
    },
    # By name, because an older torch lacks some of them; the names are ours and not the file's.
    **{f"torch.{name}": getattr(torch, name) for name in _DTYPE_NAMES if hasattr(torch, name)},
}
