"""Inputs of several kinds for one image, as a mapping: {"prompt": "a cat", "image": picture}."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ldm_core.images import image_to_tensor
from ldm_core.support.limits import is_whole
from ldm_core.support.printable import few, shown

Fields = Mapping[str, Any]


def split_fields(inputs: Any, name: str, allowed: Sequence[str]) -> tuple[list[str], list[Fields] | None]:
    """The prompts of one or several inputs, and their mappings; None in place of mappings for plain prompts.

    inputs: a prompt, a mapping with some of the `allowed` fields and optionally a "prompt" (by default the
        empty one), an image in place of {"image": image}, or a list of one of these kinds; or a tensor
        (B, 3, H, W) of images.
    Raises ValueError for other inputs, which may not be mixed, and for other fields.
    """
    if isinstance(inputs, Tensor) and inputs.ndim == 4:
        inputs = list(inputs)
    values = inputs if isinstance(inputs, list | tuple) else [inputs]
    if values and all(isinstance(value, str) for value in values):
        return list(values), None
    rows = [{"image": value} if _is_image(value) else value for value in values]
    fields = ("prompt", *allowed)
    if not rows or not all(isinstance(row, Mapping) for row in rows):
        kinds = list(dict.fromkeys(type(value).__name__ for value in values))
        raise ValueError(
            f"expected {name} as a prompt, or as a mapping with {few(fields, len(fields))}, or a list of one "
            f"of them, got {' and '.join(kinds) or 'an empty list'}"
        )
    for row in rows:
        unknown = [key for key in row if key not in fields]
        if unknown:
            raise ValueError(f"{name}: expected the fields {few(fields, len(fields))}, got {shown(unknown)}")
        if not isinstance(row.get("prompt", ""), str):
            raise ValueError(f"{name}: prompt must be a string, not {type(row['prompt']).__name__}")
    return [row.get("prompt", "") for row in rows], rows


def _is_image(value: Any) -> bool:
    from PIL import Image as PIL

    return isinstance(value, PIL.Image | Tensor)


def exactly_one(row: Fields, name: str, choices: Sequence[str]) -> str:
    """The field of `choices` that is given. Raises ValueError unless there is exactly one."""
    given = [choice for choice in choices if row.get(choice) is not None]
    if len(given) != 1:
        raise ValueError(f"{name}: expected one of {few(choices)}, got {few(given) or 'none of them'}")
    return given[0]


def one_image(image: Any, name: str) -> Tensor:
    """One picture as (1, 3, H, W) in [0, 1]. Raises ValueError for anything else."""
    try:
        tensor = image_to_tensor(image)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if len(tensor) != 1 or tensor.numel() == 0:
        raise ValueError(f"{name}: expected one image, got {tuple(tensor.shape)}")
    return tensor


def noise_level(row: Fields, field: str, default: int, levels: int, name: str) -> int:
    """The noise level of a field. Raises ValueError unless it is an int in 0..levels-1."""
    level = row.get(field, default)
    if not is_whole(level, 0, levels - 1):
        raise ValueError(f"{name}: {field} must be an int in 0..{levels - 1}, not {shown(level)}")
    return int(level)


def require_one_size(tensors: Sequence[Tensor], name: str) -> None:
    """Raise ValueError unless all pictures (..., H, W) have the same size."""
    sizes = sorted({f"{tensor.shape[-1]}x{tensor.shape[-2]}" for tensor in tensors})
    if len(sizes) != 1:
        raise ValueError(f"{name}: expected pictures of one size, got {few(sizes)}")
