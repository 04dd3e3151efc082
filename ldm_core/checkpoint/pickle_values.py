"""What a pickle becomes when it is read without running it: descriptions, and nothing that acts.

A tensor becomes a `StoredTensor`, which says where its numbers lie; its bytes are fetched later, and only
if the state dict uses it. A class or function that the reader does not know, and whatever the pickle would
have made by calling it, becomes an `InertObject`, which holds the name and what the file gave it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from ldm_core.errors import CheckpointError

MAX_DIMENSIONS = 64
MAX_ELEMENTS = 2**48  # more than any machine holds; keeps products of sizes within 64 bits
MAX_EXPANDED = 2**16  # a tensor may have more elements than its storage, up to this many


class InertObject:
    """A class or function that was named (`args` is None) or would have been called (with `args`).

    Compared by identity, so that it can be a dictionary's key, as Lightning's callbacks are.
    `name` is dotted, as "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint".
    """

    __slots__ = ("args", "entries", "items", "name", "state")

    def __init__(self, name: str, args: tuple[Any, ...] | None = None) -> None:
        self.name = name
        self.args = args
        self.state: Any = None  # what __setstate__ would have been given
        self.items: list[Any] | None = None  # what would have been appended: it is a kind of list
        self.entries: dict[Any, Any] | None = None  # what would have been set by key: a kind of dict

    def __repr__(self) -> str:
        # Never the contents: they may hold the object itself, or one list a million times.
        return f"<{self.name}{'' if self.args is None else ' object'}>"


@dataclass(frozen=True, eq=False)
class StorageType:
    """A storage class, as torch.HalfStorage. `dtype` is None for torch.storage.UntypedStorage."""

    name: str
    dtype: torch.dtype | None


@dataclass(frozen=True)
class StorageRef:
    """A block of the file that tensors are views of, named by `key`. An untyped one counts bytes."""

    key: str
    dtype: torch.dtype | None
    numel: int

    @property
    def nbytes(self) -> int:
        return self.numel * self.alignment if self.dtype is not None else self.numel

    @property
    def alignment(self) -> int:
        """Bytes per element; for an untyped storage the largest that any dtype has."""
        return self.dtype.itemsize if self.dtype is not None else 16


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A strided view of a storage. `offset` and `stride` count elements of `dtype`.

    Raises CheckpointError unless every element lies within the storage.
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
            raise CheckpointError(
                "a tensor's offset, sizes and strides must be integers that are not negative"
            )
        if len(self.size) != len(self.stride) or len(self.size) > MAX_DIMENSIONS:
            raise CheckpointError(f"a tensor has {len(self.size)} sizes and {len(self.stride)} strides")
        object.__setattr__(self, "numel", math.prod(self.size))
        if math.prod(max(n, 1) for n in self.size) > MAX_ELEMENTS:
            raise CheckpointError(f"a tensor claims the impossible shape {self.size}")
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
        """The tensor, as a view of its storage's bytes."""
        empty = torch.empty(0, dtype=self.dtype, device=storage.device)
        if self.numel == 0:
            return empty.reshape(self.size)
        return empty.set_(storage, self.offset, self.size, self.stride)


def script_attributes(value: Any) -> dict[Any, Any] | None:
    """The attributes of a TorchScript module, which its classes' names tell; None for all else."""
    match value:
        case InertObject(name=str(name), state=dict(attributes)) if name.startswith("__torch__."):
            return attributes
        case _:
            return None


def as_mapping(value: Any) -> dict[Any, Any] | None:
    """The entries of a dict, a ParameterDict, or an object that acted as a dict; None for all else."""
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
