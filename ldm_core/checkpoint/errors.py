"""The one error that reading, mapping and writing checkpoints raises."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A file that cannot be read as a checkpoint, or that does not fit the model it is asked to fill."""
