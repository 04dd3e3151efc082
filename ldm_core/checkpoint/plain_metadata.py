"""Copies the values of a pickle other than its tensors into plain values, within limits.

The result consists of None, bool, int, float, str, list and dict, so that it can be printed, compared and
written as JSON. Other values (a tensor, an unknown object without contents, a list that is too long) become a
short text in angle brackets.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch

from ldm_core.checkpoint.numpy_values import numpy_scalar
from ldm_core.checkpoint.pickle_globals import KnownFunction
from ldm_core.checkpoint.pickle_values import InertObject, StorageRef, StorageType, StoredTensor, as_mapping

MAX_VALUES = 100_000  # in all metadata of a file; each 64 characters of a text count as one more
MAX_NESTING = 16


def plain_metadata(entries: dict[Any, Any]) -> dict[str, Any]:
    """The entries as plain values, with their keys as text."""
    copier = _Copier()
    return {str(_key(key)): copier.copy(value) for key, value in entries.items()}


class _Copier:
    """Copies values and limits their number and nesting: a pickle can contain one list a million times."""

    def __init__(self) -> None:
        self._left = MAX_VALUES

    def copy(self, value: Any, depth: int = 0) -> Any:
        number = numpy_scalar(value)
        value = value if number is None else number
        self._left -= 1 + (len(value) // 64 if isinstance(value, str) else 0)
        if self._is_plain(value):
            return value
        contents = _contents(value)
        if contents is None or depth >= MAX_NESTING or len(contents) > self._left:
            return describe(value)
        if isinstance(contents, dict):
            return {self._key(key): self.copy(item, depth + 1) for key, item in contents.items()}
        return [self.copy(item, depth + 1) for item in contents]

    def _key(self, key: Any) -> Any:
        if isinstance(key, str):
            self._left -= len(key) // 64
            if self._left < 0:
                return describe(key)
        return _key(key)

    def _is_plain(self, value: Any) -> bool:
        if isinstance(value, str):
            return self._left >= 0 and is_unicode(value)
        if type(value) is int:
            return value.bit_length() <= 64
        return value is None or isinstance(value, bool | float)


def _contents(value: Any) -> dict[Any, Any] | Collection[Any] | None:
    """The contents of a container or of a container-like object; None for other values."""
    if isinstance(value, list | tuple | set):
        return value
    mapping = as_mapping(value)
    if mapping is None and isinstance(value, InertObject):
        return value.items if value.items is not None else as_mapping(value.state)
    return mapping


def _key(key: Any) -> Any:
    if key is None or isinstance(key, bool | int | float) or (isinstance(key, str) and is_unicode(key)):
        return key
    return describe(key)


def is_unicode(text: str) -> bool:
    """Whether the text can be encoded: text in a pickle can contain halves of surrogate pairs."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def describe(value: Any) -> str:
    """A short text in angle brackets for any value."""
    match value:
        case StoredTensor():
            return f"<tensor {value.dtype} {value.size}>"
        case StorageRef():
            return "<storage>"
        case InertObject():
            return repr(value)
        case KnownFunction() | StorageType():
            return f"<{value.name}>"
        case torch.dtype() | complex():
            return f"<{value}>"
        case str() | bytes() | bytearray() | list() | tuple() | set() | dict():
            return f"<{type(value).__name__} of length {len(value):,}>"
        case int():
            return f"<integer of {value.bit_length():,} bits>"
        case _:
            return f"<{type(value).__name__}>"
