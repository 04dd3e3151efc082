"""The errors of the package. All of them are ValueErrors."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A file that cannot be read as a checkpoint, or that does not fit the model it is asked to fill."""


class UnknownModelError(CheckpointError):
    """A file of a structure that is known, of a model that is not: it loads with a configuration."""


class ConfigError(ValueError):
    """A configuration that describes no network, or that contradicts another one."""
