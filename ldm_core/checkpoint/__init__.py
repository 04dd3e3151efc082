"""Reading and writing checkpoint files: named tensors and metadata, independent of the networks.

`inspect` and `save`, which need the networks, are aliases of `ldm_core.inspect` and `ldm_core.save`.
"""

from typing import Any

import ldm_core
from ldm_core.checkpoint.reader import Checkpoint, read
from ldm_core.errors import CheckpointError

__all__ = ["Checkpoint", "CheckpointError", "inspect", "read", "save"]


def __getattr__(name: str) -> Any:
    if name not in ("inspect", "save"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(ldm_core, name)
