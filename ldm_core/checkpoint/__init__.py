"""Checkpoints: safe reading, key maps, inspection and writing."""

from ldm_core.checkpoint.errors import CheckpointError
from ldm_core.checkpoint.inspect import Report, inspect
from ldm_core.checkpoint.reader import Checkpoint, read
from ldm_core.checkpoint.save import save

__all__ = ["Checkpoint", "CheckpointError", "Report", "inspect", "read", "save"]
