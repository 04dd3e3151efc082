"""What the face networks are called with: checks, and the device and type of it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ldm_core.support.limits import is_number
from ldm_core.support.printable import shown


def require_faces(network: str, x: Tensor, size: int) -> None:
    """Raise ValueError unless x is a tensor of pictures (B, 3, size, size) of a floating-point type."""
    _require_pictures(network, x, f"(B, 3, {size}, {size})", x.shape[1:] == (3, size, size))


def require_multiple(network: str, x: Tensor, factor: int) -> None:
    """Raise ValueError unless x is a tensor of pictures (B, 3, H, W) with multiples of `factor`."""
    fits = x.ndim == 4 and x.shape[1] == 3 and not (x.shape[2] % factor or x.shape[3] % factor)
    _require_pictures(network, x, f"(B, 3, H, W) with H and W multiples of {factor}", fits)


def _require_pictures(network: str, x: Tensor, shape: str, fits: bool) -> None:
    if x.ndim != 4 or not fits or 0 in x.shape:
        raise ValueError(f"{network}: expected pictures of {shape}, got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"{network}: expected pictures of a floating-point type, got {x.dtype}")


def require_fraction(network: str, name: str, value: float) -> None:
    """Raise ValueError unless the value is a number in [0, 1]."""
    if not (is_number(value) and 0 <= value <= 1):
        raise ValueError(f"{network}: {name} must be a number in [0, 1], not {shown(value)}")


def placement(network: Any) -> dict[str, Any]:
    """The device and type of a network's weights, as arguments of `Tensor.to`."""
    first = next(network.parameters(), None) if isinstance(network, nn.Module) else None
    return {} if first is None else {"device": first.device, "dtype": first.dtype}
