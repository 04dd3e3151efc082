"""A stand-in for a GPU: tensors whose device is "gpu" and whose numbers are on the CPU.

As with a real one, an operation on tensors of two devices raises, and tensors reach it and leave it by copies
only, which are counted: a copy from the device waits for all that it still has to compute. Importing this
file registers the device for the rest of the process, so tests with it run in a process of their own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

import ldm_core

_setup_privateuseone_for_python_backend("gpu")
PACKAGE = str(Path(ldm_core.__file__).parent)
CPU = torch.device("cpu")

# These return numbers to the host, or a shape that depends on values.
WAITING = {"_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2", "is_nonzero"}
COPYING = {"_to_copy", "copy_", "_copy_from"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}


@dataclass
class Traffic:
    """The copies between host and device, each as "operation at file:line" of the package."""

    readbacks: list[str] = field(default_factory=list)
    uploads: list[str] = field(default_factory=list)


_counting: list[Traffic] = []


@contextmanager
def traffic() -> Iterator[Traffic]:
    """Count the copies within the block."""
    counted = Traffic()
    _counting.append(counted)
    try:
        yield counted
    finally:
        _counting.remove(counted)


def _note(kind: str, operation: str) -> None:
    if _counting:
        entry = f"{operation} at {_place()}"
        for counted in _counting:
            getattr(counted, kind).append(entry)


def _place() -> str:
    """The innermost line of the package that is being executed."""
    frame = sys._getframe()
    while frame is not None and not frame.f_code.co_filename.startswith(PACKAGE):
        frame = frame.f_back  # type: ignore[assignment]
    if frame is None:
        return "a test"
    return f"{Path(frame.f_code.co_filename).relative_to(PACKAGE)}:{frame.f_lineno}"


class DeviceTensor(Tensor):
    """A tensor on the device; `inner` holds its numbers."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> DeviceTensor:
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device("gpu:0"),
        )
        made.inner = inner
        return made

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.inner = host(value)

    def __repr__(self, **_: Any) -> str:
        return f"DeviceTensor({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


def host(x: Any) -> Any:
    """The numbers of a tensor, without counting a copy: for the tests themselves."""
    return x.inner if isinstance(x, DeviceTensor) else x


def _wrapped(x: Any) -> Any:
    return DeviceTensor(x) if isinstance(x, Tensor) and not isinstance(x, DeviceTensor) else x


def _on_host(value: Any) -> Any:
    return CPU if isinstance(value, torch.device) else value


def _computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func._schema.name.removeprefix("aten::")
    if name in ("copy_", "_copy_from"):
        return _copied(name, *args)
    _check_devices(name, args, kwargs)
    result = func(*tree_map(host, args), **{key: tree_map(host, _on_host(v)) for key, v in kwargs.items()})
    if name == "_to_copy" and _is_cpu(kwargs.get("device")):
        _note("readbacks", name)
        return result
    if func._schema.is_mutable:  # in place: the first argument, or `out`
        return kwargs.get("out", args[0] if args else None)
    return tree_map(_wrapped, result)


def _is_cpu(device: torch.device | None) -> bool:
    return device is not None and device.type == "cpu"


def _check_devices(name: str, args: Any, kwargs: dict[str, Any]) -> None:
    """Raise RuntimeError for tensors of two devices, as a GPU does; count operations that wait for it."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    strangers = [x for x in tensors if not isinstance(x, DeviceTensor) and x.ndim > 0]
    if name in INDEXING:
        indices = [x for x in tree_leaves(args[1]) if isinstance(x, Tensor)]
        for index in indices:
            if not isinstance(index, DeviceTensor):
                _note("uploads", name)
            elif index.dtype == torch.bool:
                _note("readbacks", name)
        strangers = [x for x in strangers if not any(x is index for index in indices)]
    if strangers:
        raise RuntimeError(
            f"{name}: expected all tensors on one device, found gpu:0 and cpu {tuple(strangers[0].shape)}"
        )
    if name in WAITING:
        _note("readbacks", name)


def _copied(name: str, first: Tensor, second: Tensor, *_: Any) -> Tensor:
    target, source = (first, second) if name == "copy_" else (second, first)
    if isinstance(target, DeviceTensor) != isinstance(source, DeviceTensor):
        _note("uploads" if isinstance(target, DeviceTensor) else "readbacks", name)
    host(target).copy_(host(source))
    return target


def _factory(operator: Any) -> Any:
    def made(*args: Any, **kwargs: Any) -> Tensor:
        return DeviceTensor(operator(*args, **{key: _on_host(value) for key, value in kwargs.items()}))

    return made


_library = torch.library.Library("aten", "IMPL")
for _name in ("empty.memory_format", "empty_strided"):
    _packet, _, _overload = _name.partition(".")
    _operator = getattr(getattr(torch.ops.aten, _packet), _overload or "default")
    _library.impl(_name, _factory(_operator), "PrivateUse1")
_library.impl("_copy_from", lambda source, target, *_: _copied("_copy_from", source, target), "PrivateUse1")
