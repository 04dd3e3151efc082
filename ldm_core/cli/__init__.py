"""The command line."""

from ldm_core.cli.main import main

__all__ = ["main"]
