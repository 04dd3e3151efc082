"""Fixtures of the tests of training."""

from support.trained_loras import _nothing_is_left_behind, pair, sd1
from support.training_pictures import folder
from support.whole_runs import whole

__all__ = [
    "_nothing_is_left_behind",
    "folder",
    "pair",
    "sd1",
    "whole",
]
