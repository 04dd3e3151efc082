"""Fixtures of the tests of pictures and files."""

from support.cli_runs import draw, run

__all__ = [
    "draw",
    "run",
]
