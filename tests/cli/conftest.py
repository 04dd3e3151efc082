"""Fixtures of the tests of the command line."""

from support.cli_runs import draw, run

__all__ = [
    "draw",
    "run",
]
