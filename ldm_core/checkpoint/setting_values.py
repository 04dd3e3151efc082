"""Reads values from settings files and checks their types and ranges.

An invalid value raises an error that names the setting and, in `reading`, the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ldm_core.errors import CheckpointError, ConfigError
from ldm_core.support.limits import MAX_LEVELS, MAX_SIZE, is_number, is_whole
from ldm_core.support.printable import shown, shown_error

Settings = Mapping[str, Any]
MAX_ID = 2**31


@contextmanager
def reading(file: str) -> Iterator[None]:
    """Convert errors in reading a file's settings to CheckpointErrors that name the file."""
    try:
        yield
    except CheckpointError:
        raise
    except KeyError as error:
        raise CheckpointError(f"{file} has no setting {error}") from error
    except ConfigError as error:
        raise CheckpointError(f"{file}: {error}") from error
    except (TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(f"{file}: {shown_error(error)}") from error


def check_activation(file: str, settings: Settings) -> None:
    if settings.get("act_fn", "silu") not in ("silu", "swish"):  # both name the same function
        raise CheckpointError(f"{file}: act_fn is {shown(settings['act_fn'])}; only 'silu' is supported")


def check_fixed(file: str, settings: Settings, fixed: Settings) -> None:
    for name, value in fixed.items():
        if name in settings and settings[name] != value:
            raise CheckpointError(f"{file}: {name} is {shown(settings[name])}; only {value!r} is supported")


def block_kinds(settings: Settings, name: str) -> list[str]:
    """The class names of the blocks, one per level."""
    values = settings[name]
    if (
        not isinstance(values, list)
        or len(values) > MAX_LEVELS
        or not all(isinstance(k, str) for k in values)
    ):
        raise ConfigError(f"{name} must be at most {MAX_LEVELS} names, not {shown(values)}")
    return values


def block_widths(settings: Settings) -> list[int]:
    """The number of channels of each level."""
    return wholes("block_out_channels", settings["block_out_channels"])


def wholes(name: str, values: Any) -> list[int]:
    """A list of whole numbers, one per level."""
    if (
        not isinstance(values, list)
        or not 0 < len(values) <= MAX_LEVELS
        or not all(is_whole(value, 1, MAX_SIZE) for value in values)
    ):
        raise ConfigError(
            f"{name} must be 1 to {MAX_LEVELS} whole numbers in 1..{MAX_SIZE}, not {shown(values)}"
        )
    return values


def real(settings: Settings, name: str, default: float) -> float:
    value = settings.get(name, default)
    if not is_number(value):
        raise ConfigError(f"{name} must be a number, not {shown(value)}")
    return float(value)


def whole(settings: Settings, name: str, default: int | None = None) -> int:
    value = settings[name] if default is None else settings.get(name, default)
    if not is_whole(value, -MAX_ID, MAX_ID):
        raise ConfigError(f"{name} must be a whole number, not {shown(value)}")
    return int(value)


def multiple(width: int, unit: int) -> int:
    if width % unit:
        raise ConfigError(f"width {width} is not a multiple of the first, {unit}")
    return width // unit


def one_number(name: str, value: Any) -> int:
    values = value if isinstance(value, list) and value else [value]
    if not is_whole(values[0], 1, MAX_SIZE) or values != values[:1] * len(values):
        raise ConfigError(f"{name} must be one whole number for all levels, not {shown(value)}")
    return int(values[0])


def one_of(file: str, name: str, value: Any, table: Mapping[str, Any]) -> Any:
    if not isinstance(value, str) or value not in table:
        raise CheckpointError(f"{file}: {name} is {shown(value)}; expected one of {', '.join(table)}")
    return table[value]


def level_widths(part: str, channels: int, multiples: Sequence[int]) -> list[int]:
    """Each level's channels. diffusers has no other number for what comes before the first level."""
    if multiples[0] != 1:
        raise ConfigError(
            f"its {part}s are as wide before their first level as in it, "
            f"and this one has {channels} channels before, {channels * multiples[0]} in it"
        )
    return [channels * multiple for multiple in multiples]
