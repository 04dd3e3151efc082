"""The values of a pickle that is read without executing it.

A tensor becomes a `StoredTensor`, which describes the location of its elements. Its bytes are read later, if
the state dict uses it. An unknown class or function, and the result of calling it, become an `InertObject`,
which records the name and the arguments.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from ldm_core.errors import CheckpointError

MAX_DIMENSIONS = 64
MAX_ELEMENTS = 2**48  # more than the memory of any machine; keeps products of sizes within 64 bits
MAX_EXPANDED = 2**16  # elements that an expanded tensor may have beyond its storage's size


class InertObject:
    """An unknown class or function (`args` is None), or a call of it that was not executed.

    Compared by identity, so that it can be a dictionary key, as Lightning's callbacks are.
    name: dotted, such as "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint".
    """

    __slots__ = ("args", "entries", "items", "name", "state")

    def __init__(self, name: str, args: tuple[Any, ...] | None = None) -> None:
        self.name = name
        self.args = args
        self.state: Any = None  # the argument of __setstate__
        self.items: list[Any] | None = None  # the items of a list-like object
        self.entries: dict[Any, Any] | None = None  # the entries of a dict-like object

    def __repr__(self) -> str:
        # Without the contents, which can contain the object itself, or one list a million times.
        return f"<{self.name}{'' if self.args is None else ' object'}>"


@dataclass(frozen=True, eq=False)
class StorageType:
    """A storage class such as torch.HalfStorage. `dtype` is None for torch.storage.UntypedStorage."""

    name: str
    dtype: torch.dtype | None


@dataclass(frozen=True)
class StorageRef:
    """A storage in the file, named by `key`. `numel` counts the bytes of an untyped storage."""

    key: str
    dtype: torch.dtype | None
    numel: int

    @property
    def nbytes(self) -> int:
        return self.numel * self.alignment if self.dtype is not None else self.numel

    @property
    def alignment(self) -> int:
        """Bytes per element; for an untyped storage, the maximum of all dtypes."""
        return self.dtype.itemsize if self.dtype is not None else 16


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A strided view of a storage. `offset` and `stride` count elements of `dtype`.

    Raises CheckpointError unless all elements are within the storage.
    """

    storage: StorageRef
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    numel: int = field(init=False)

    def __post_init__(self) -> None:
        values = (self.offset, *self.size, *self.stride)
        if any(type(value) is not int or not 0 <= value < 2**63 for value in values):
            raise CheckpointError("the offset, sizes and strides of a tensor must be non-negative integers")
        if len(self.size) != len(self.stride) or len(self.size) > MAX_DIMENSIONS:
            raise CheckpointError(f"a tensor has {len(self.size)} sizes and {len(self.stride)} strides")
        object.__setattr__(self, "numel", math.prod(self.size))
        if math.prod(max(n, 1) for n in self.size) > MAX_ELEMENTS:
            raise CheckpointError(f"a tensor has the impossible shape {self.size}")
        capacity = self.storage.nbytes // self.dtype.itemsize
        last = self.offset + sum((n - 1) * step for n, step in zip(self.size, self.stride))
        if self.numel and last >= capacity:
            raise CheckpointError(
                f"a tensor of shape {self.size} at offset {self.offset} does not fit into its storage "
                f"of {capacity} elements"
            )
        if self.numel > max(capacity, MAX_EXPANDED):
            raise CheckpointError(
                f"a tensor of shape {self.size} is expanded from a storage of only {capacity} elements"
            )

    def view(self, storage: torch.UntypedStorage) -> torch.Tensor:
        """The tensor as a view of the storage."""
        empty = torch.empty(0, dtype=self.dtype, device=storage.device)
        if self.numel == 0:
            return empty.reshape(self.size)
        return empty.set_(storage, self.offset, self.size, self.stride)


def script_attributes(value: Any) -> dict[Any, Any] | None:
    """The attributes of a TorchScript module, recognised by its class name; None for other values."""
    match value:
        case InertObject(name=str(name), state=dict(attributes)) if name.startswith("__torch__."):
            return attributes
        case _:
            return None


def as_mapping(value: Any) -> dict[Any, Any] | None:
    """The entries of a dict, a ParameterDict, or a dict-like object; None for other values."""
    match value:
        case dict():
            return value
        case InertObject(
            name="torch.nn.modules.container.ParameterDict", state={"_parameters": dict(entries)}
        ):
            return entries
        case InertObject(entries=dict(entries)):
            return entries
        case _:
            return None
