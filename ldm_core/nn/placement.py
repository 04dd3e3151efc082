"""Weights into a network: built without values, each placed on a device and in a type."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ldm_core.nn.cpu import multiplies_bfloat16
from ldm_core.support.printable import shown_error

Network = TypeVar("Network", bound=nn.Module)


class SkipInitialisation(TorchFunctionMode):
    """Weights that a file is about to replace need no values, and drawing them takes long even on "meta"."""

    FILLS = ("uniform_", "normal_", "kaiming_uniform_", "fill_", "zero_")

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in self.FILLS:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def blank(network: Callable[[Any], Network], config: Any) -> Network:
    """A network of this configuration on the meta device, without values, in evaluation mode."""
    with SkipInitialisation(), torch.device("meta"):
        built = network(config).eval()
    _names_of(network, config)[:] = (name for name, _ in built.named_parameters())
    return built


def parameter_names(network: Callable[[Any], nn.Module], config: Any) -> list[str]:
    """The names of the parameters that a network of this configuration has, in its order."""
    names = _names_of(network, config)
    return list(names) if names else [name for name, _ in blank(network, config).named_parameters()]


@lru_cache(maxsize=16)
def _names_of(network: Callable[[Any], nn.Module], config: Any) -> list[str]:
    return []  # until `blank` fills it: whoever wants the names has mostly just built the network


def fill(
    network: nn.Module, parameters: dict[str, Tensor], device: torch.device | str, dtype: torch.dtype
) -> None:
    """Give a network its weights, without gradients; each is taken out of `parameters` as it is placed."""
    state = {name: _placed(parameters.pop(name), device, dtype) for name in list(parameters)}
    network.load_state_dict(state, strict=True, assign=True)
    network.requires_grad_(False)


def check_dtype(dtype: torch.dtype | str | None) -> None:
    """Raise ValueError for what is no type of weights."""
    floating = isinstance(dtype, torch.dtype) and dtype.is_floating_point
    if dtype not in (None, "auto") and not floating:
        raise ValueError(f"dtype must be a floating-point type of torch or 'auto', not {dtype!r}")


def check_device(device: torch.device | str) -> None:
    """Raise ValueError for a device that torch does not know, or that this machine does not have."""
    try:
        torch.empty(0, device=torch.device(device))
    # An unknown name is a RuntimeError, another type a TypeError, a torch without CUDA an AssertionError.
    except (RuntimeError, TypeError, AssertionError) as error:
        raise ValueError(f"device {device!r} cannot be used: {shown_error(error)}") from error


def choose_dtype(
    dtype: torch.dtype | Literal["auto"] | None, device: torch.device | str, tensors: Iterable[Tensor]
) -> torch.dtype:
    """The type that is asked for, or the one that suits the device and the file's tensors."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto" and torch.device(device).type == "cpu" and multiplies_bfloat16():
        return torch.bfloat16
    return _usual_dtype(device, tensors)


def _usual_dtype(device: torch.device | str, tensors: Iterable[Tensor]) -> torch.dtype:
    """Float32 on a CPU; elsewhere the type of most of the weights, or float16 for float8's."""
    if torch.device(device).type == "cpu":
        return torch.float32
    sizes: Counter[torch.dtype] = Counter()
    for tensor in tensors:
        if tensor.is_floating_point():
            sizes[tensor.dtype] += tensor.numel()
    dtype = sizes.most_common(1)[0][0]
    return dtype if dtype.itemsize > 1 else torch.float16


def _placed(tensor: Tensor, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    """A weight where and as it is wanted; without a move or a cast, the mapped file's own bytes.

    Convolutions of 16-bit types go by channels-last kernels only: without, PyTorch takes a fallback that
    is many times slower on CPUs without 16-bit arithmetic, and transposes at every call elsewhere.
    """
    tensor = tensor.to(device, dtype)
    if tensor.ndim == 4 and dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.contiguous(memory_format=torch.channels_last)
    return tensor
