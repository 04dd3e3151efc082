"""What a file's shapes say without its values: the numbers in its tensors' names."""

from __future__ import annotations

from collections.abc import Mapping

from ldm_core.errors import ConfigError
from ldm_core.support.limits import MAX_DEPTH

Shapes = Mapping[str, tuple[int, ...]]  # by the tensors' names


def children(shapes: Shapes, prefix: str, limit: int = MAX_DEPTH) -> list[int]:
    """The numbers that follow a prefix: `children(shapes, "a.") == [0, 1]` for a.0.x, a.1.x.

    Raises ConfigError for numbers of `limit` or more.
    """
    found = {key[len(prefix) :].split(".", 1)[0] for key in shapes if key.startswith(prefix)}
    names = [name for name in found if name.isdecimal()]
    if any(len(name) > len(str(limit)) or int(name) >= limit for name in names):
        raise ConfigError(f"its tensors under {prefix} are numbered to {limit} or more")
    return sorted(map(int, names))
