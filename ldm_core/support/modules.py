"""Iterates over the modules of a module, or of a bundle of parts such as `LatentDiffusion`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import nn


def named_modules(model: Any) -> Iterator[tuple[str, nn.Module]]:
    """The modules in a module, or in the parts of a bundle, with their dotted names.

    A bundle has a mapping `modules` of its parts (`LatentDiffusion`), or is a dataclass of modules.
    Raises ValueError for anything else.
    """
    if isinstance(model, nn.Module):
        yield from model.named_modules()
        return
    parts = getattr(model, "modules", None)
    if not isinstance(parts, Mapping):
        if not is_dataclass(model):
            raise ValueError(f"expected a torch module or a dataclass of them, not {type(model).__name__}")
        parts = {part.name: getattr(model, part.name) for part in fields(model)}
    for part, value in parts.items():
        if isinstance(value, nn.Module):
            yield from ((f"{part}.{name}".rstrip("."), module) for name, module in value.named_modules())
