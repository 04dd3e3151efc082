"""Fixtures of the tests of sampling."""

from support.accelerated_networks import unet
from support.cli_runs import run
from support.sampler_inputs import picture

__all__ = [
    "picture",
    "run",
    "unet",
]
