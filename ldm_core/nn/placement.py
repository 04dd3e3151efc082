"""Fill a network that was built without values with weights on a device and in a dtype."""

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
    """Skip the initialisation of weights that a file will replace; it is slow even on the "meta" device."""

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
    _shapes_of(network, config).update((name, value.shape) for name, value in built.state_dict().items())
    return built


def parameter_shapes(network: Callable[[Any], nn.Module], config: Any) -> dict[str, torch.Size]:
    """The shapes of the parameters and buffers that such a network stores, by name, in its order."""
    shapes = _shapes_of(network, config)
    if not shapes:
        blank(network, config)
    return dict(shapes)


def parameter_names(network: Callable[[Any], nn.Module], config: Any) -> list[str]:
    """The names of the parameters and buffers that such a network stores, in its order."""
    return list(parameter_shapes(network, config))


@lru_cache(maxsize=16)
def _shapes_of(network: Callable[[Any], nn.Module], config: Any) -> dict[str, torch.Size]:
    return {}  # until `blank` fills it: whoever wants the shapes has mostly just built the network


def fill(
    network: nn.Module, parameters: dict[str, Tensor], device: torch.device | str, dtype: torch.dtype
) -> None:
    """Load `parameters` into a network, without gradients; each leaves the dict once it is placed.

    Integers of the network, such as the counters of batch norms, keep their dtype.
    """
    own = {name: value.dtype for name, value in network.state_dict().items()}
    state = {
        name: placed(parameters.pop(name), device, dtype if own[name].is_floating_point else own[name])
        for name in list(parameters)
    }
    network.load_state_dict(state, strict=True, assign=True)
    network.requires_grad_(False)


def check_dtype(dtype: torch.dtype | str | None) -> None:
    """Raise ValueError unless dtype is None, "auto" or a floating-point dtype."""
    floating = isinstance(dtype, torch.dtype) and dtype.is_floating_point
    if dtype not in (None, "auto") and not floating:
        raise ValueError(f"dtype must be a floating-point type of torch or 'auto', not {dtype!r}")


def check_device(device: torch.device | str) -> None:
    """Raise ValueError for a device that PyTorch does not know or that this machine does not have."""
    try:
        torch.empty(0, device=torch.device(device))
    # PyTorch raises RuntimeError for an unknown name, TypeError for another type, AssertionError without
    # CUDA.
    except (RuntimeError, TypeError, AssertionError) as error:
        raise ValueError(f"device {device!r} cannot be used: {shown_error(error)}") from error


def choose_dtype(
    dtype: torch.dtype | Literal["auto"] | None, device: torch.device | str, tensors: Iterable[Tensor]
) -> torch.dtype:
    """The requested dtype, or the one that suits the device and the file's tensors."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto" and torch.device(device).type == "cpu" and multiplies_bfloat16():
        return torch.bfloat16
    return _usual_dtype(device, tensors)


def _usual_dtype(device: torch.device | str, tensors: Iterable[Tensor]) -> torch.dtype:
    """float32 on a CPU; otherwise the dtype of most of the weights, or float16 if that is a float8 dtype."""
    if torch.device(device).type == "cpu":
        return torch.float32
    sizes: Counter[torch.dtype] = Counter()
    for tensor in tensors:
        if tensor.is_floating_point():
            sizes[tensor.dtype] += tensor.numel()
    dtype = sizes.most_common(1)[0][0]
    return dtype if dtype.itemsize > 1 else torch.float16


def placed(tensor: Tensor, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    """A weight on a device, in a dtype; if neither changes, it shares the memory-mapped file's bytes."""
    return _laid_out(tensor.to(device, dtype))


def lay_out(network: nn.Module) -> None:
    """Change the memory layout of a network's weights, in place, to that of `placed` for their dtype."""
    for parameter in network.parameters():
        parameter.data = _laid_out(parameter.data)


def _laid_out(weight: Tensor) -> Tensor:
    """Convolution weights of 16-bit types channels-last, others contiguous.

    Otherwise PyTorch uses a fallback that is many times slower on CPUs without 16-bit arithmetic, and
    transposes at every call on other devices.
    """
    if weight.ndim != 4:
        return weight
    short = weight.dtype in (torch.float16, torch.bfloat16)
    return weight.contiguous(memory_format=torch.channels_last if short else torch.contiguous_format)
