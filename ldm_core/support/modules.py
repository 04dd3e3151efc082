"""One walk over what a switch may be thrown for: a module, or a dataclass of parts such as a whole model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from torch import nn


def named_modules(model: Any) -> Iterator[tuple[str, nn.Module]]:
    """Every module in a module, or in a dataclass's fields that are modules, with its dotted name.

    Raises ValueError for anything else.
    """
    if isinstance(model, nn.Module):
        yield from model.named_modules()
    elif is_dataclass(model):
        for part in fields(model):
            value = getattr(model, part.name)
            if isinstance(value, nn.Module):
                yield from (
                    (f"{part.name}.{name}".rstrip("."), module) for name, module in named_modules(value)
                )
    else:
        raise ValueError(f"expected a torch module or a dataclass of them, not {type(model).__name__}")
