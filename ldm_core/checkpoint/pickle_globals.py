"""The classes and functions that a pickle can use: those of tensors and containers.

For each name, a function in this file checks the arguments and builds a plain value or a description. Names
are never looked up in modules, so a file can reach nothing outside of the table below. `torch.save` writes
the names for tensors; Python and NumPy write those for plain values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sized
from dataclasses import dataclass
from typing import Any

import torch

from ldm_core.checkpoint.pickle_values import (
    MAX_DIMENSIONS,
    InertObject,
    StorageRef,
    StorageType,
    StoredTensor,
)
from ldm_core.checkpoint.work_budget import ITEM, TENSOR, Budget
from ldm_core.errors import CheckpointError

MANY = 2**12  # entries: more than an optimizer's parameters, fewer than a vocabulary's words


@dataclass(frozen=True, eq=False)
class KnownFunction:
    """A name from the table and the function that this package calls for it.

    build(budget, *arguments) charges the budget for what it copies. The caller charges for the arguments.
    """

    name: str
    build: Callable[..., Any]


def rebuild_tensor(
    budget: Budget, storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any = False,
    hooks: Any = None, metadata: Any = None,
) -> StoredTensor:  # fmt: skip
    """torch._utils._rebuild_tensor and _rebuild_tensor_v2. The storage defines the dtype."""
    if not isinstance(storage, StorageRef) or storage.dtype is None:
        raise CheckpointError("a tensor is not a view of a typed storage")
    return _tensor(budget, storage, storage.dtype, offset, size, stride)


def rebuild_tensor_v3(
    budget: Budget, storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any,
    dtype: Any, metadata: Any = None,
) -> StoredTensor:  # fmt: skip
    """torch._utils._rebuild_tensor_v3, for float8 and unsigned types, which have no storage class."""
    if not isinstance(storage, StorageRef) or not isinstance(dtype, torch.dtype):
        raise CheckpointError("a tensor is not a view of a storage")
    if storage.dtype not in (None, dtype):
        raise CheckpointError(f"a tensor of {dtype} is a view of a storage of {storage.dtype}")
    return _tensor(budget, storage, dtype, offset, size, stride)


def _tensor(
    budget: Budget, storage: StorageRef, dtype: torch.dtype, offset: Any, size: Any, stride: Any
) -> StoredTensor:
    budget.spend(TENSOR)
    return StoredTensor(storage, dtype, offset, _integers(budget, size), _integers(budget, stride))


def rebuild_parameter(budget: Budget, data: Any, requires_grad: Any, hooks: Any, state: Any = None) -> Any:
    """torch._utils._rebuild_parameter. Returns the parameter's tensor."""
    return data


def rebuild_from_type(budget: Budget, function: Any, kind: Any, args: Any, state: Any) -> Any:
    """torch._tensor._rebuild_from_type_v2. Returns the tensor without its attributes."""
    if not isinstance(function, KnownFunction) or function.build not in (rebuild_tensor, rebuild_tensor_v3):
        return InertObject("torch._tensor._rebuild_from_type_v2", (function, kind, args, state))
    budget.spend(ITEM * len(args))
    return function.build(budget, *args)


def make_dict(budget: Budget, *args: Any) -> dict[Any, Any]:
    """OrderedDict and Counter, empty or from mappings or pairs."""
    result: dict[Any, Any] = {}
    for source in args:
        for key, value in source.items() if isinstance(source, dict) else source:
            result[checked_key(key, result, budget)] = value
    return result


def make_defaultdict(budget: Budget, *args: Any) -> dict[Any, Any]:
    """defaultdict, without its factory."""
    return make_dict(budget, *args[1:])


def make_set(budget: Budget, *args: Any) -> set[Any]:
    """set and frozenset."""
    result: set[Any] = set()
    for source in args:
        for item in _checked(source, list, tuple, set):
            result.add(checked_key(item, result, budget))
    return result


def make_size(budget: Budget, *args: Any) -> tuple[int, ...]:
    """torch.Size, as a tuple."""
    return _integers(budget, args[0] if args else ())


def make_bytes(budget: Budget, *args: Any) -> bytes:
    """bytes and bytearray of old protocols, empty or from bytes or latin-1 text."""
    if not args:
        return b""
    data = _checked(args[0], bytes, bytearray, str)
    budget.spend(len(data))
    return data.encode("latin-1") if isinstance(data, str) else bytes(data)


def encode(budget: Budget, text: Any, encoding: Any = "latin1") -> bytes:
    """_codecs.encode, with which protocol 2 stores bytes as latin-1 text."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        # The error does not quote the encoding, which can be an endless list.
        raise CheckpointError("expected bytes encoded as latin-1 text, got another encoding")
    budget.spend(len(text))
    return text.encode("latin-1")


def make_complex(budget: Budget, real: Any, imag: Any) -> complex:
    """A complex number from two real ones."""
    return complex(_checked(real, float, int), _checked(imag, float, int))


def checked_key(key: Any, container: Sized, budget: Budget) -> Any:
    """A key that can be added to `container` in bounded time; charges the budget for adding it.

    Short tuples, and numbers in a container of MANY or more entries, are converted to text, because a file
    could choose them so that their hashes collide; Python's hashes of text are random. Nested tuples are
    rejected, since they hash recursively. Raises CheckpointError for other types.
    """
    budget.spend(ITEM)
    is_number = isinstance(key, int | float)
    if isinstance(key, str | bytes):
        budget.spend(len(key))  # an equal key is compared with it
    elif is_number and len(container) < MANY:
        budget.spend(len(container) // 8)  # well-chosen numbers collide with half of the others
    is_short_tuple = type(key) is tuple and len(key) <= 16 and all(_is_atom(part, 256) for part in key)
    if is_short_tuple or (is_number and len(container) >= MANY and _is_atom(key)):
        text = str(key)
        budget.spend(4 * len(text))
        return text
    if _is_atom(key) or isinstance(key, InertObject | KnownFunction | StorageType):
        return key
    raise CheckpointError(f"a dictionary key or set member of type {type(key).__name__} is not supported")


def _is_atom(value: Any, longest: float = math.inf) -> bool:
    if type(value) is int:
        return value.bit_length() <= 64
    if isinstance(value, str | bytes):
        return len(value) <= longest
    return value is None or isinstance(value, bool | float | torch.dtype)


def _integers(budget: Budget, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or len(value) > MAX_DIMENSIONS:
        raise CheckpointError(
            f"a tensor's shape or strides are not a tuple of at most {MAX_DIMENSIONS} integers"
        )
    budget.spend(ITEM * len(value))
    return tuple(value)


def _checked(value: Any, *kinds: type) -> Any:
    if not isinstance(value, kinds):
        raise CheckpointError(f"expected a value of type {kinds[0].__name__}, got {type(value).__name__}")
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
    # Python 2 and protocol 2 name the builtins module __builtin__.
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

# Known and harmless names whose objects stay inert. Their readers use the arguments.
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
    # By name, because older versions of PyTorch lack some. The names are constants, not the file's.
    **{f"torch.{name}": getattr(torch, name) for name in _DTYPE_NAMES if hasattr(torch, name)},
}
