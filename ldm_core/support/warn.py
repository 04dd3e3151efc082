"""Warnings that point at the user's code."""

from __future__ import annotations

import sys
import warnings

OURS = ("ldm_core.", "torch.")  # torch's decorators and modules call this package's functions


def warn(message: str) -> None:
    """Issue a UserWarning that points at the innermost caller outside this package, at whatever depth."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).startswith(OURS):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)
