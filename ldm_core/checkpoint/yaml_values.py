"""Read values from the sections of CompVis's YAML configurations."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ldm_core.errors import ConfigError
from ldm_core.support.limits import is_number
from ldm_core.support.printable import shown

Params = Mapping[str, Any]


def class_name(stage: Any) -> str:
    """The class in a section's `target`, or a section that is only a word; empty without either."""
    named = stage.get("target") if isinstance(stage, Mapping) else stage
    return named.rpartition(".")[2] if isinstance(named, str) else ""


def flag(params: Params, name: str, default: bool) -> bool:
    """A value that must be true or false."""
    value = params.get(name, default)
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be true or false, not {shown(value)}")
    return value


def section(data: Any, *names: str) -> Mapping[str, Any]:
    for depth, name in enumerate(names):
        if not isinstance(data, Mapping) or not isinstance(data.get(name), Mapping):
            raise ConfigError(
                f"no section {'.'.join(names[: depth + 1])}, which CompVis's configurations have"
            )
        data = data[name]
    return data


def lookup(table: Mapping[str, Any], value: Any, name: str) -> Any:
    if not isinstance(value, str) or value not in table:
        raise ConfigError(f"{name} must be one of {', '.join(table)}, not {shown(value)}")
    return table[value]


def real(params: Mapping[str, Any], name: str, default: float) -> float:
    value = params.get(name, default)
    if isinstance(value, str):  # YAML reads 1e-4 (no decimal point) as text
        with suppress(ValueError):
            value = float(value)
    if not is_number(value):
        raise ConfigError(f"{name} must be a number, not {shown(value)}")
    return float(value)
