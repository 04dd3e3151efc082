"""Fixtures of the tests of loading and saving models."""

from support.diffusers_pipelines import models, theirs
from support.full_size_files import full_sd1, sd1_files
from support.small_checkpoints import small
from support.wild_models import sd1, sd2

__all__ = [
    "full_sd1",
    "models",
    "sd1",
    "sd1_files",
    "sd2",
    "small",
    "theirs",
]
