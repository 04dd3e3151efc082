"""The exceptions of the package. All are ValueErrors."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A file that cannot be read as a checkpoint, or that does not fit the model."""


class UnknownModelError(CheckpointError):
    """A file with known layouts that matches no known model; passing a configuration may load it."""


class ConfigError(ValueError):
    """A configuration that is invalid or contradicts another one."""
