"""The limits of a configuration's fields, and the checks of the fields against them."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any, cast, get_args, get_type_hints

from ldm_core.errors import ConfigError
from ldm_core.support.printable import shown

# Several times the sizes of the largest published model, and small enough to build such networks on the meta
# device within a moment.
MAX_SIZE = 2**16  # channels, features, positions, and pixels of a side
MAX_ROWS = 2**20  # of an embedding: vocabulary size, number of classes
MAX_LEVELS = 16  # resolution levels of one network
MAX_DEPTH = 256  # consecutive blocks
MAX_BLOCKS = 1024  # of one network
MAX_SCALE = 1e6  # of latents
MAX_TIMESTEPS = 100_000


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def make_tuples(config: Any) -> None:
    """Replace the lists in a frozen dataclass by tuples, so that it can be hashed."""
    for name, value in vars(config).items():
        if isinstance(value, list):
            object.__setattr__(config, name, tuple(value))


def is_number(value: Any) -> bool:
    """Whether the value is a finite int or float within the range of a float, and not a bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= 1e300


def is_whole(value: Any, low: int, high: int) -> bool:
    """Whether the value is an int in low..high, and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def require_whole(part: str, config: Any, names: str, low: int, high: int) -> None:
    """Raise ConfigError unless all named fields are ints in low..high, and not bools."""
    for name in names.split():
        value = getattr(config, name)
        require(
            is_whole(value, low, high),
            f"{part}: {name} must be an int in {low}..{high}, not {shown(value)}",
        )


def require_sizes(part: str, config: Any, name: str, low: int) -> None:
    """Raise ConfigError unless a field is a tuple of at most MAX_LEVELS ints in low..MAX_SIZE."""
    values = getattr(config, name)
    require(
        isinstance(values, tuple)
        and len(values) <= MAX_LEVELS
        and all(is_whole(value, low, MAX_SIZE) for value in values),
        f"{part}: {name} must be a tuple of at most {MAX_LEVELS} ints in {low}..{MAX_SIZE}, "
        f"not {shown(values)}",
    )


def require_bool(part: str, config: Any, name: str) -> None:
    value = getattr(config, name)
    require(isinstance(value, bool), f"{part}: {name} must be true or false, not {shown(value)}")


def require_widths(part: str, name: str, first: int, multiples: tuple[int, ...]) -> None:
    require(len(multiples) > 0, f"{part}: {name} must not be empty")
    widest = first * max(multiples)
    require(widest <= MAX_SIZE, f"{part}: expected at most {MAX_SIZE} channels, got {widest}")


def require_blocks(part: str, blocks: int) -> None:
    require(
        blocks <= MAX_BLOCKS, f"{part}: expected at most {MAX_BLOCKS} blocks on the way down, got {blocks:,}"
    )


def require_heads(part: str, width: int, heads: int) -> None:
    require(width % heads == 0, f"{part}: width {width} is not divisible by {heads} heads")


def build(cls: type[Any], values: Any) -> Any:
    """A config dataclass from JSON values, with lists as tuples and mappings as the fields' own dataclasses.

    Raises ConfigError.
    """
    require(isinstance(values, dict), f"{cls.__name__}: expected a mapping, not {shown(values)}")
    unknown = set(values) - {f.name for f in fields(cls)}
    require(not unknown, f"{cls.__name__}: unknown field(s) {shown(unknown)}")
    return cls(**{name: _field(cls, name, value) for name, value in values.items()})


def _field(cls: type[Any], name: str, value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    if not isinstance(value, dict):
        return value
    hint = get_type_hints(cls)[name]
    inner = next((kind for kind in (hint, *get_args(hint)) if is_dataclass(kind)), None)
    return value if inner is None else build(cast("type[Any]", inner), value)
