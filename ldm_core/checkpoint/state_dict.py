"""From what a pickle held to named tensors and plain metadata.

CompVis's and Lightning's checkpoints are a dictionary with the tensors under `state_dict`, and the epoch,
callbacks and optimizer beside it; many others are the state dict itself.
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
# All tensors together may have so many times the numbers of their storages, beyond some that always may: tied
# weights have twice as many. Whoever reads every number of every tensor then takes a bounded time.
MAX_VIEWS = 16
MIN_VIEWED = 2**26  # bytes
MAX_NAME = 4096

Fetch = Callable[[StorageRef], torch.UntypedStorage]


def split(root: Any, fetch: Fetch, budget: Budget) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, metadata) of a pickle's value; `fetch` gives the bytes of a storage (or none of them).

    `state_dict` is unwrapped, as often as it is nested. Where no tensor lies directly in it, dictionaries
    within it are searched, and their tensors get dotted names. All else is metadata. Raises CheckpointError
    where there are no tensors.
    """
    mapping = as_mapping(root)
    if mapping is None:
        raise CheckpointError(f"it holds no dictionary of tensors but {describe(root)}")
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
        raise CheckpointError(f"it holds no tensors; {_entries(mapping)}")
    return collector.tensors, plain_metadata(others)


def split_script(root: Any, fetch: Fetch, budget: Budget) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """`split` for a TorchScript program: its tensors by the names that its state dict would give them."""
    attributes = script_attributes(root)
    if attributes is None:
        raise CheckpointError(f"a TorchScript program that is no module but {describe(root)}")
    collector = _Collector(fetch, budget)
    collector.add_nested(attributes)
    if not collector.tensors:
        raise CheckpointError("a TorchScript program without tensors")
    return collector.tensors, {}


class _Collector:
    """Gathers tensors by name, each fetched once, so that what the file shares stays shared."""

    def __init__(self, fetch: Fetch, budget: Budget) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._fetch = fetch
        self._budget = budget
        self._storages: dict[str, torch.UntypedStorage] = {}
        self._stored = self._viewed = 0  # bytes
        self._fetched: dict[int, Tensor | None] = {}
        self._visited: set[int] = set()

    def add_direct(self, mapping: dict[Any, Any]) -> dict[Any, Any]:
        """Add the tensors directly in a mapping, and return its other entries."""
        return {key: value for key, value in mapping.items() if not self._add("", key, value)}

    def add_nested(self, mapping: dict[Any, Any], prefix: str = "", depth: int = 0) -> None:
        """Add the tensors of a mapping and of those within it. A mapping that is met twice counts once."""
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
            raise CheckpointError("its tensors show the same numbers over and over")
        return value.view(self._storages[key])


def _name(prefix: str, key: Any) -> str:
    """The name of a tensor, or of a mapping of them. Raises CheckpointError for what cannot be one."""
    if isinstance(key, str) and len(prefix) + len(key) > MAX_NAME:
        raise CheckpointError(f"a tensor's name is longer than {MAX_NAME} characters")
    if not isinstance(key, str | int) or not is_unicode(str(key)):
        raise CheckpointError(f"a tensor's name is not text but {describe(key)}")
    return f"{prefix}{key}"


def _prefixed(prefix: str, entries: dict[Any, Any]) -> dict[Any, Any]:
    """What lies beside tensors keeps its place in its name: `state_dict.note`."""
    return {prefix + key if isinstance(key, str) else key: value for key, value in entries.items()}


def _entries(mapping: dict[Any, Any]) -> str:
    if not mapping:
        return "it is empty"
    names = [ascii(key[:40] if isinstance(key, str | bytes) else key)[:40] for key in list(mapping)[:6]]
    return f"its entries are {', '.join(names)}{', …' if len(mapping) > 6 else ''}"
