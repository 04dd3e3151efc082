"""Checkpoints: safe reading, key maps, inspection and writing."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ldm_core.checkpoint.errors import CheckpointError
from ldm_core.checkpoint.reader import Checkpoint, read

if TYPE_CHECKING:
    from ldm_core.checkpoint.doctor import Report, inspect
    from ldm_core.checkpoint.saving import save

__all__ = ["Checkpoint", "CheckpointError", "Report", "inspect", "read", "save"]

# Loading a model needs none of these, and importing them takes time.
_WHEN_NEEDED = {"Report": "doctor", "inspect": "doctor", "save": "saving"}


def __getattr__(name: str) -> Any:
    if name not in _WHEN_NEEDED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHEN_NEEDED[name]}"), name)
