"""Splits the value of a pickle into named tensors and plain metadata.

Checkpoints of CompVis and Lightning are dictionaries with the tensors under `state_dict`, beside the epoch,
callbacks and optimizer. Many others are the state dict itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ldm_core.checkpoint.numpy_values import numpy_array
from ldm_core.checkpoint.pickle_values import (
    InertObject,
    StorageRef,
    StoredTensor,
    as_mapping,
    script_attributes,
)
from ldm_core.checkpoint.plain_metadata import describe, is_unicode, plain_metadata
from ldm_core.checkpoint.work_budget import TENSOR, Budget
from ldm_core.errors import CheckpointError

MAX_NESTING = 16
# All tensors together may have at most MAX_VIEWS times the bytes of their storages, plus MIN_VIEWED, which
# bounds the time to read all their values. Tied weights have twice as many.
MAX_VIEWS = 16
MIN_VIEWED = 2**26  # bytes
MAX_NAME = 4096

Fetch = Callable[[StorageRef], torch.UntypedStorage]


def split(root: Any, fetch: Fetch, budget: Budget) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, metadata) of a pickle's value. `fetch` returns a storage, which can be on the meta device.

    Nested `state_dict`s are unwrapped. If the innermost one directly contains no tensor, its dictionaries are
    searched, and their tensors get dotted names. All other values are metadata. The tensors of a pair get the
    names "0" and "1". Raises CheckpointError if there are no tensors.
    """
    mapping = as_mapping(root)
    if mapping is None and _is_pair(root):
        mapping = {str(k): tensor for k, tensor in enumerate(root)}
    if mapping is None:
        raise CheckpointError(f"expected a dictionary of tensors, got {describe(root)}")
    others: dict[Any, Any] = {}
    prefix = ""
    visited = {id(mapping)}
    for _ in range(MAX_NESTING):
        inner = as_mapping(mapping.get("state_dict"))
        if inner is None or id(inner) in visited:
            break
        visited.add(id(inner))
        others.update(
            _prefixed(prefix, {key: value for key, value in mapping.items() if key != "state_dict"})
        )
        mapping, prefix = inner, f"{prefix}state_dict."
    collector = _Collector(fetch, budget)
    others.update(_prefixed(prefix, collector.add_direct(mapping)))
    if not collector.tensors:
        collector.add_nested(mapping)
    if not collector.tensors:
        raise CheckpointError(f"the file contains no tensors; {_entries(mapping)}")
    return collector.tensors, plain_metadata(others)


def _is_pair(root: Any) -> bool:
    """Whether a pickle has two tensors alone, as Karlo's file of mean and std does."""
    return (
        isinstance(root, list | tuple) and len(root) == 2 and all(isinstance(x, StoredTensor) for x in root)
    )


def split_script(root: Any, fetch: Fetch, budget: Budget) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """`split` for a TorchScript program. The tensors have the names of its state dict."""
    attributes = script_attributes(root)
    if attributes is None:
        raise CheckpointError(f"expected a TorchScript module, got {describe(root)}")
    collector = _Collector(fetch, budget)
    collector.add_nested(attributes)
    if not collector.tensors:
        raise CheckpointError("the TorchScript program contains no tensors")
    return collector.tensors, {}


class _Collector:
    """Collects tensors by name. Each storage is fetched once, so that tied weights stay tied."""

    def __init__(self, fetch: Fetch, budget: Budget) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._fetch = fetch
        self._budget = budget
        self._storages: dict[str, torch.UntypedStorage] = {}
        self._stored = self._viewed = 0  # bytes
        self._fetched: dict[int, Tensor | None] = {}
        self._visited: set[int] = set()

    def add_direct(self, mapping: dict[Any, Any]) -> dict[Any, Any]:
        """Add the tensors that are values of a mapping, and return its other entries."""
        return {key: value for key, value in mapping.items() if not self._add("", key, value)}

    def add_nested(self, mapping: dict[Any, Any], prefix: str = "", depth: int = 0) -> None:
        """Add the tensors of a mapping and of its nested mappings. Each mapping is visited once."""
        if id(mapping) in self._visited or depth > MAX_NESTING:
            return
        self._visited.add(id(mapping))
        for key, value in mapping.items():
            inner = as_mapping(value)
            inner = script_attributes(value) if inner is None else inner
            if inner is None:
                self._add(prefix, key, value)
            elif isinstance(key, str | int):
                self.add_nested(inner, _name(prefix, key) + ".", depth + 1)

    def _add(self, prefix: str, key: Any, value: Any) -> bool:
        tensor = self._tensor(value)
        if tensor is None:
            return False
        name = _name(prefix, key)
        self._budget.spend(TENSOR + len(name))
        if name in self.tensors:
            raise CheckpointError(f"two tensors have the name {name!r}")
        self.tensors[name] = tensor
        return True

    def _tensor(self, value: Any) -> Tensor | None:
        if not isinstance(value, StoredTensor | InertObject):
            return None
        if id(value) not in self._fetched:
            self._fetched[id(value)] = (
                self._view(value) if isinstance(value, StoredTensor) else numpy_array(value, self._budget)
            )
        return self._fetched[id(value)]

    def _view(self, value: StoredTensor) -> Tensor:
        if value.numel == 0:
            return value.view(self._fetch(replace(value.storage, numel=0)))
        key = value.storage.key
        if key not in self._storages:
            self._storages[key] = self._fetch(value.storage)
            self._stored += value.storage.nbytes
        self._viewed += value.numel * value.dtype.itemsize
        if self._viewed > MAX_VIEWS * self._stored + MIN_VIEWED:
            raise CheckpointError("the tensors are too many views of the same storages")
        return value.view(self._storages[key])


def _name(prefix: str, key: Any) -> str:
    """The name of a tensor or of a mapping of tensors. Raises CheckpointError for an invalid name."""
    if isinstance(key, str) and len(prefix) + len(key) > MAX_NAME:
        raise CheckpointError(f"the name of a tensor has more than {MAX_NAME} characters")
    if not isinstance(key, str | int) or not is_unicode(str(key)):
        raise CheckpointError(f"the name of a tensor must be text, not {describe(key)}")
    return f"{prefix}{key}"


def _prefixed(prefix: str, entries: dict[Any, Any]) -> dict[Any, Any]:
    """The entries beside a state dict, with its prefix before their names, such as `state_dict.note`."""
    return {prefix + key if isinstance(key, str) else key: value for key, value in entries.items()}


def _entries(mapping: dict[Any, Any]) -> str:
    if not mapping:
        return "the dictionary is empty"
    names = [ascii(key[:40] if isinstance(key, str | bytes) else key)[:40] for key in list(mapping)[:6]]
    return f"the entries are {', '.join(names)}{', …' if len(mapping) > 6 else ''}"
