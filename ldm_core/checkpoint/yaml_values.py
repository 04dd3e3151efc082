"""Read values from the sections of CompVis's YAML configurations."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ldm_core.errors import ConfigError
from ldm_core.support.limits import is_number
from ldm_core.support.printable import shown

Params = Mapping[str, Any]


def class_name(stage: Params) -> str:
    """The class name in a section's `target`; empty without one."""
    named = stage.get("target")
    return named.rpartition(".")[2] if isinstance(named, str) else ""


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
